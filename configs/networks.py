"""The networks of the experiments. Each function sets the fields of `config.model` that describe
one."""

import ml_collections

Model = ml_collections.ConfigDict


def _unet(model: Model) -> None:
    model.update(normalization="GroupNorm", nonlinearity="swish", nf=128, ch_mult=(1, 2, 2, 2))
    model.update(attn_resolutions=(16,), resamp_with_conv=True, conditional=True)


def ddpm(model: Model) -> None:
    """Set DDPM's U-Net for images of 32 pixels."""
    _unet(model)
    model.update(name="ddpm", num_res_blocks=2, attend_after_each_up_block=False)


def ddpm_256(model: Model) -> None:
    """Set DDPM's U-Net for images of 256 pixels."""
    ddpm(model)
    model.ch_mult = (1, 1, 2, 2, 4, 4)


def ncsnpp(model: Model) -> None:
    """Set NCSN++ for images of 32 or 64 pixels."""
    _unet(model)
    model.update(name="ncsnpp", num_res_blocks=4, attention_type="ddpm", conv_size=3)
    model.update(embedding_type="fourier", fourier_scale=16.0, init_scale=0.0, skip_rescale=True)
    model.update(fir=True, fir_kernel=(1, 3, 3, 1), resblock_type="biggan", progressive="none")
    model.update(progressive_input="residual", progressive_combine="sum")


def ncsnpp_256(model: Model) -> None:
    """Set NCSN++ for images of 256 pixels, with input and output at every resolution."""
    ncsnpp(model)
    model.update(ch_mult=(1, 1, 2, 2, 2, 2, 2), num_res_blocks=2)
    model.update(progressive="output_skip", progressive_input="input_skip")


def ncsnpp_1024(model: Model) -> None:
    """Set NCSN++ for images of 1024 pixels."""
    ncsnpp_256(model)
    model.update(nf=16, ch_mult=(1, 2, 4, 8, 16, 32, 32, 32), num_res_blocks=1)


def ddpmpp(model: Model) -> None:
    """Set DDPM++: NCSN++ with DDPM's embedding, without FIR filter and progressive input."""
    ncsnpp(model)
    model.update(embedding_type="positional", fir=False, progressive_input="none")


def edm_ddpmpp(model: Model) -> None:
    """Set EDM's DDPM++ for CIFAR-10: three levels of equal width, classes before dense layers."""
    ddpmpp(model)
    model.update(ch_mult=(2, 2, 2), class_embedding="before")


def edm_ncsnpp(model: Model) -> None:
    """Set EDM's NCSN++ for CIFAR-10, whose Fourier features are linear in the label."""
    edm_ddpmpp(model)
    model.update(embedding_type="fourier_linear", fir=True, progressive_input="residual")


def adm(model: Model) -> None:
    """Set ADM for ImageNet, 64x64 pixels (Dhariwal & Nichol 2021)."""
    model.update(name="adm", nf=192, ch_mult=(1, 2, 3, 4), num_res_blocks=3)
    model.update(attn_resolutions=(32, 16, 8), embedding_type="positional")


def mlp(model: Model) -> None:
    """Set a residual MLP for vectors."""
    model.update(name="mlp", nf=128, num_res_blocks=3)


def _refinenet(model: Model) -> None:
    model.update(normalization="InstanceNorm++", nonlinearity="elu", nf=128)
    model.interpolation = "bilinear"


def ncsn(model: Model) -> None:
    """Set NCSN, whose normalization layers have coefficients for each noise level."""
    _refinenet(model)
    model.num_classes = model.get_ref("num_scales")  # Two names of one field.
    model.update(name="ncsn", scale_by_sigma=False)


def ncsnv2(model: Model) -> None:
    """Set NCSNv2 for images of 32 or 64 pixels. The noise level only scales its output."""
    _refinenet(model)
    model.update(name="ncsnv2_64", scale_by_sigma=True)
