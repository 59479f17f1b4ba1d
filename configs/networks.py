"""The networks of the experiments. Each function sets the fields of `config.model` that describe
one."""

import ml_collections

Model = ml_collections.ConfigDict


def _unet(model: Model) -> None:
    model.normalization = "GroupNorm"
    model.nonlinearity = "swish"
    model.nf = 128
    model.ch_mult = (1, 2, 2, 2)
    model.attn_resolutions = (16,)
    model.resamp_with_conv = True
    model.conditional = True


def ddpm(model: Model) -> None:
    """Set DDPM's U-Net for images of 32 pixels."""
    _unet(model)
    model.name = "ddpm"
    model.num_res_blocks = 2
    model.attend_after_each_up_block = False


def ddpm_256(model: Model) -> None:
    """Set DDPM's U-Net for images of 256 pixels."""
    ddpm(model)
    model.ch_mult = (1, 1, 2, 2, 4, 4)


def ncsnpp(model: Model) -> None:
    """Set NCSN++ for images of 32 or 64 pixels."""
    _unet(model)
    model.name = "ncsnpp"
    model.num_res_blocks = 4
    model.embedding_type = "fourier"
    model.fourier_scale = 16.0
    model.attention_type = "ddpm"
    model.fir = True
    model.fir_kernel = (1, 3, 3, 1)
    model.skip_rescale = True
    model.resblock_type = "biggan"
    model.progressive = "none"
    model.progressive_input = "residual"
    model.progressive_combine = "sum"
    model.init_scale = 0.0
    model.conv_size = 3


def ncsnpp_256(model: Model) -> None:
    """Set NCSN++ for images of 256 pixels, with input and output at every resolution."""
    ncsnpp(model)
    model.ch_mult = (1, 1, 2, 2, 2, 2, 2)
    model.num_res_blocks = 2
    model.progressive = "output_skip"
    model.progressive_input = "input_skip"


def ncsnpp_1024(model: Model) -> None:
    """Set NCSN++ for images of 1024 pixels."""
    ncsnpp_256(model)
    model.nf = 16
    model.ch_mult = (1, 2, 4, 8, 16, 32, 32, 32)
    model.num_res_blocks = 1


def ddpmpp(model: Model) -> None:
    """Set DDPM++: NCSN++ with DDPM's embedding, without FIR filter and progressive input."""
    ncsnpp(model)
    model.embedding_type = "positional"
    model.fir = False
    model.progressive_input = "none"


def edm_ddpmpp(model: Model) -> None:
    """Set EDM's DDPM++ for CIFAR-10: three levels of equal width, classes before dense layers."""
    ddpmpp(model)
    model.ch_mult = (2, 2, 2)
    model.class_embedding = "before"


def edm_ncsnpp(model: Model) -> None:
    """Set EDM's NCSN++ for CIFAR-10, whose Fourier features are linear in the label."""
    edm_ddpmpp(model)
    model.embedding_type = "fourier_linear"
    model.fir = True
    model.progressive_input = "residual"


def adm(model: Model) -> None:
    """Set ADM for ImageNet, 64x64 pixels (Dhariwal & Nichol 2021)."""
    model.name = "adm"
    model.nf = 192
    model.ch_mult = (1, 2, 3, 4)
    model.num_res_blocks = 3
    model.attn_resolutions = (32, 16, 8)
    model.embedding_type = "positional"


def _refinenet(model: Model) -> None:
    model.normalization = "InstanceNorm++"
    model.nonlinearity = "elu"
    model.nf = 128
    model.interpolation = "bilinear"


def ncsn(model: Model) -> None:
    """Set NCSN, whose normalization layers have coefficients for each noise level."""
    _refinenet(model)
    model.name = "ncsn"
    model.num_classes = model.get_ref("num_scales")  # Two names of one field.
    model.scale_by_sigma = False


def ncsnv2(model: Model) -> None:
    """Set NCSNv2 for images of 32 or 64 pixels. The noise level only scales its output."""
    _refinenet(model)
    model.name = "ncsnv2_64"
    model.scale_by_sigma = True
