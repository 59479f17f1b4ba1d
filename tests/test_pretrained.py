"""Checkpoints of the official code and of diffusers: import, export, and what is refused."""

import io
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization, traverse_util
from safetensors.numpy import save_file

import pretrained
from configs.ve import church_ncsnpp_continuous
from configs.vp.ddpm import cifar10 as ddpm_cifar10
from errors import InputError
from experiment import Experiment
from models import building
from models.ncsnpp import NCSNpp
from modes import conversion
from pretrained import parameter_names
from pretrained.diffusers_unet import unet_places
from tests import reference
from tests.test_networks import SMALL

FORMATS = {"flax": "checkpoint_7", "torch": "checkpoint_7.pth", "safetensors": "seven.safetensors"}
WITH_MOMENTS = "ve_cifar10_ncsnpp"


def same(a, b) -> bool:
    a, b = (traverse_util.flatten_dict(tree) for tree in (a, b))
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def official(name: str, folder: str = WITH_MOMENTS) -> str:
    return str(reference.find(f"{folder}/{name}"))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "folder", ["ve_bedroom_ncsnpp_continuous", "vp_cifar10_ncsnpp", "vp_ddpm_cifar10"]
)
def test_names_are_those_recorded(folder):
    """PyTorch name -> Flax name of every parameter, as the official code's users recorded it."""
    recorded = json.loads(reference.find(f"{folder}/torch_to_flax.json").read_text())
    network = reference.experiment(folder).network
    flax = {place.path: place.names[0] for place in parameter_names.flax_places(network)}
    ours = {
        f"module.{place.names[0]}": flax[place.path]
        for place in parameter_names.torch_places(network)
    }
    assert ours == {name: flax_name for name, (flax_name, _) in recorded.items()}


OPTIONS = [
    {
        "progressive": "residual",
        "progressive_input": "residual",
        "resblock_type": "ddpm",
        "fir": True,
    },
    {"progressive": "output_skip", "progressive_input": "input_skip", "progressive_combine": "cat"},
    {"resblock_type": "ddpm", "resamp_with_conv": False, "embedding_type": "fourier"},
    {"conditional": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_every_parameter_has_one_place(options):
    network = building.abstract_network(lambda: NCSNpp(**SMALL, **options, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    for find in (parameter_names.flax_places, parameter_names.torch_places):
        found = find(network)
        assert len({place.names[0] for place in found}) == len(found)
        assert len({place.path for place in found if place.path}) == len(jax.tree.leaves(params))
        assert same(
            parameter_names.take(found, parameter_names.give(found, params), "itself"), params
        )


def test_layers_without_parameters_are_numbered_as_in_pytorch():
    """Resamplers of features count among all_modules, those of images do not."""
    options = {"progressive": "output_skip", "resblock_type": "ddpm", "resamp_with_conv": False}
    network = building.abstract_network(lambda: NCSNpp(**SMALL, **options, rngs=nnx.Rngs(0)))
    used = {int(place.names[0].split(".")[1]) for place in parameter_names.torch_places(network)}
    kinds = [
        type(layer).__name__
        for path, _, layer in parameter_names.official_layers(network)
        if "image" not in str(path[-1])
    ]
    assert {kinds[i] for i in set(range(len(kinds))) - used} == {"Downsample", "Upsample"}


def test_tensors_on_which_nothing_depends():
    """PyTorch's NCSN++ has layers for noise levels also when it is not told any; the recorded one shows where."""
    told, untold = (
        building.abstract_network(
            lambda conditional=conditional: NCSNpp(
                **SMALL, conditional=conditional, rngs=nnx.Rngs(0)
            )
        )
        for conditional in (True, False)
    )
    shapes = lambda network: [
        (place.names[0].split(".", 2)[2], place.shapes[0])
        for place in parameter_names.torch_places(network)
    ]
    assert shapes(untold) == shapes(told)[4:]  # All but the embedding's two dense layers.
    idle = [place for place in parameter_names.torch_places(untold) if not place.path]
    assert idle
    assert all(".Dense_0." in place.names[0] for place in idle)


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "folder", ["ve_cifar10_ncsnpp", "ve_cifar10_ncsnpp_continuous", "vp_ddpm_cifar10"]
)
def test_reading_inverts_writing(tmp_path, folder, kind):
    """Also for Fourier frequencies, which PyTorch does not average."""
    if kind == "torch":
        pytest.importorskip(
            "torch",
            reason="PyTorch, which writes .pth files, is not installed (requirements-dev.txt)",
        )
    experiment, trained = reference.experiment(folder), reference.trained(folder)
    if trained.mu is None:
        still = {
            place.path
            for place in parameter_names.torch_places(experiment.network)
            if not place.moves
        }
        moments = traverse_util.path_aware_map(
            lambda path, a: 0 * a if path in still else a, trained.params
        )
        trained = trained._replace(mu=moments, nu=jax.tree.map(np.square, moments), updates=5)
    path = tmp_path / FORMATS[kind]
    with open(path, "wb") as file:
        pretrained.writer(path)(file, trained, experiment.network, experiment.config)
    again = pretrained.read(path, experiment.network, experiment.config)
    assert (again.step, again.updates) == (trained.step, trained.updates)
    assert same(again.params, trained.params)
    assert same(again.ema, trained.ema)
    assert same(again.mu, trained.mu)
    assert same(again.nu, trained.nu)


def test_states_hold_all_that_files_do():
    experiment, trained = reference.experiment(WITH_MOMENTS), reference.trained(WITH_MOMENTS)
    again = conversion.from_state(jax.device_get(conversion.to_state(trained, experiment)))
    assert (again.step, again.updates) == (trained.step, trained.updates)
    assert all(same(getattr(again, tree), getattr(trained, tree)) for tree in pretrained.TREES)


def test_flax_files_are_written_as_the_official_code_writes_them(tmp_path):
    experiment, trained = reference.experiment(WITH_MOMENTS), reference.trained(WITH_MOMENTS)
    with open(tmp_path / "out", "wb") as file:
        pretrained.write_flax(file, trained, experiment.network, experiment.config)
    ours, theirs = (
        pretrained.load_flax(tmp_path / "out"),
        pretrained.load_flax(official("checkpoint_flax")),
    )
    ours["rng"] = theirs["rng"]  # Not kept: ours follows from the seed.
    ours, theirs = (
        traverse_util.flatten_dict(tree, keep_empty_nodes=True, sep="/") for tree in (ours, theirs)
    )
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, np.ndarray):
            assert (value.dtype, value.shape) == (ours[name].dtype, ours[name].shape), name
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_pytorch_files_are_written_as_the_official_code_writes_them(tmp_path):
    trained, experiment = (
        reference.trained(WITH_MOMENTS, "torch"),
        reference.experiment(WITH_MOMENTS),
    )
    import torch

    with open(tmp_path / "out.pth", "wb") as file:
        pretrained.write_torch(file, trained, experiment.network, experiment.config)
    ours, theirs = (
        torch.load(path, weights_only=True)
        for path in (tmp_path / "out.pth", official("checkpoint_torch.pth"))
    )

    def compare(a, b, path):
        if isinstance(b, torch.Tensor):
            assert a.dtype == b.dtype, path
            assert (
                torch.allclose(a, b, rtol=1e-12, atol=0)
                if b.dtype == torch.float64
                else torch.equal(a, b)
            ), path
        elif isinstance(b, dict):
            assert list(a) == list(b) or path.endswith("param_groups/0") or not path, path
            for key in b:
                compare(a[key], b[key], f"{path}/{key}")
        elif isinstance(b, (list, tuple)):
            assert len(a) == len(b), path
            for i, each in enumerate(b):
                compare(a[i], each, f"{path}/{i}")
        elif not path.endswith("num_updates"):
            assert a == b, path

    compare(ours, theirs, "")


def test_a_file_without_moments_starts_adam_anew(tmp_path):
    folder = "ve_cifar10_ncsnpp_continuous"
    state = conversion.to_state(reference.trained(folder), reference.experiment(folder))
    counts = [
        int(leaf)
        for path, leaf in jax.tree.leaves_with_path(state.opt_state)
        if "count" in str(path[-1])
    ]
    assert counts == [
        0,
        reference.trained(folder).step,
    ]  # Adam's correction of its bias; the warm-up.


# --- diffusers --------------------------------------------------------------------------------------------------------


def ncsnpp_experiment():
    c = church_ncsnpp_continuous.get_config()
    c.data.image_size = 16
    c.model.update(nf=32, ch_mult=(1, 4, 4), num_res_blocks=1, attn_resolutions=(8,))
    described = {
        "sample_size": 16,
        "block_out_channels": (32, 128, 128),
        "layers_per_block": 1,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "time_embedding_type": "fourier",
        "center_input_sample": True,
        "mid_block_scale_factor": 1.41421356237,
        "norm_num_groups": None,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
    }
    return Experiment(c, jax.devices()[:1]), described


def ddpm_experiment():
    c = ddpm_cifar10.get_config()
    c.data.image_size = 16
    c.model.update(
        nf=32,
        ch_mult=(1, 2),
        num_res_blocks=2,
        attn_resolutions=(16,),
        attend_after_each_up_block=True,
    )
    described = {
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "layers_per_block": 2,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
    }
    return Experiment(c, jax.devices()[:1]), described


@pytest.mark.parametrize("make", [ncsnpp_experiment, ddpm_experiment])
def test_models_of_diffusers(tmp_path, make):
    """Randomly initialised models, saved by diffusers, give the same scores here."""
    reason = "diffusers and PyTorch are not installed (requirements-dev.txt)"
    torch, diffusers = (pytest.importorskip(name, reason=reason) for name in ("torch", "diffusers"))
    experiment, described = make()
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**described).eval()
    model.save_pretrained(tmp_path)
    trained = pretrained.read(tmp_path, experiment.network, experiment.config)
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3)) * 5
    t = jnp.array([0.2, 0.9]) if experiment.num_scales is None else jnp.array([17, 801]) / 999
    score = jax.jit(lambda params, x, t: experiment.score(params)(x, t))(trained.ema, x, t)
    label = experiment.sde.label(t, experiment.num_scales)
    with torch.no_grad():
        raw = model(torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(np.asarray(label))).sample
    theirs = experiment.sde.score_from_output(
        jnp.moveaxis(jnp.asarray(raw.numpy()), 1, -1), t, experiment.num_scales
    )
    assert reference.image_error(score, theirs) < 1e-5


def write_unet(folder, experiment, described, old_names=False):
    """A diffusers folder without diffusers, with random parameters."""
    rng = np.random.default_rng(0)
    found = unet_places(experiment.network)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), experiment.abstract_params
    )
    names = {place.names[0]: place.names[-1 if old_names else 0] for place in found}
    folder.mkdir(parents=True)
    save_file(
        {names[k]: v for k, v in parameter_names.give(found, params).items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(described))
    return params


@pytest.mark.parametrize("old_names", [False, True])
def test_diffusers_folders(tmp_path, old_names):
    """Also a pipeline's folder, which has the model in unet/, and the names of before 2023."""
    experiment, described = ddpm_experiment()
    params = write_unet(tmp_path / "pipeline" / "unet", experiment, described, old_names)
    trained = pretrained.read(tmp_path / "pipeline", experiment.network, experiment.config)
    assert same(trained.params, params)
    assert same(trained.ema, params)
    number = conversion.import_checkpoint(
        experiment.config, str(tmp_path / "w"), str(tmp_path / "pipeline")
    )
    assert number == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"norm_eps": 1e-5}, "norm_eps: 1e-05 there, 1e-06 by the config"),
        (
            {"block_out_channels": (32, 96)},
            "block_out_channels: [32, 96] there, [32, 64] by the config",
        ),
        ({"downsample_padding": 1}, "downsample_padding: 1 there, 0 by the config"),
        ({"attention_head_dim": 8}, "attention_head_dim: 8 there, None by the config"),
        ({"num_class_embeds": 10}, "num_class_embeds: 10 there, None by the config"),
    ],
)
def test_other_models_of_diffusers_are_refused(tmp_path, change, sentence):
    experiment, described = ddpm_experiment()
    write_unet(tmp_path / "m", experiment, described | change)
    with pytest.raises(InputError, match=re.escape(sentence)):
        pretrained.read(tmp_path / "m", experiment.network, experiment.config)


def test_configs_without_a_counterpart_in_diffusers_are_refused(tmp_path):
    experiment, described = ddpm_experiment()
    write_unet(tmp_path / "m", experiment, described)
    c = experiment.config.copy_and_resolve_references()
    c.unlock()
    c.model.attend_after_each_up_block = False
    with pytest.raises(
        InputError,
        match="model.attend_after_each_up_block = False is not in diffusers' UNet2DModel; True",
    ):
        pretrained.read(tmp_path / "m", experiment.network, c)
    ncsn = reference.experiment("ve_ncsnv2_cifar10")
    with pytest.raises(
        InputError,
        match="For diffusers' UNet2DModel, model.name = 'ncsnv2_64' is unknown; known: ddpm, ncsnpp",
    ):
        pretrained.read(tmp_path / "m", ncsn.network, ncsn.config)


# --- what does not fit ------------------------------------------------------------------------------------------------


def read(source):
    experiment = reference.experiment(WITH_MOMENTS)
    return pretrained.read(source, experiment.network, experiment.config)


def flax_file(path, change):
    state = pretrained.load_flax(official("checkpoint_flax"))
    change(state)
    path.write_bytes(serialization.msgpack_serialize(state))


def drop(state):
    del state["params_ema"]["Conv_0"]["bias"]


def add(state):
    state["optimizer"]["target"]["Extra_0"] = {"bias": np.zeros(3, np.float32)}


def widen(state):
    state["params_ema"]["Conv_0"]["kernel"] = np.zeros((3, 3, 5, 4), np.float32)


def forget(state):
    del state["params_ema"]


def batch_norm(state):
    state["model_state"] = {"batch_stats": np.zeros(3, np.float32)}


def half_moments(state):
    del state["optimizer"]["state"]["param_states"]["Conv_0"]["bias"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (drop, "Conv_0/bias, which the network has with shape (4,), is not in the file"),
        (add, "the network has no place for Extra_0/bias, which has shape (3,) in the file"),
        (widen, "Conv_0/kernel has shape (3, 3, 5, 4) in the file and (3, 3, 3, 4) in the network"),
        (forget, "it has no 'params_ema'"),
        (batch_norm, "has a model_state, batch_stats"),
        (half_moments, "(its grad_ema) does not fit the config: Conv_0/bias"),
    ],
)
def test_flax_files_that_do_not_fit_are_refused(tmp_path, change, sentence):
    flax_file(tmp_path / "checkpoint_1", change)
    with pytest.raises(InputError, match=re.escape(sentence)):
        read(tmp_path / "checkpoint_1")


def test_plain_shapes_of_norms_are_accepted(tmp_path):
    """GroupNorm parameters as later versions of Flax wrote them, (C,) for (1, 1, 1, C)."""
    squeeze = lambda tree: jax.tree.map(
        lambda leaf: leaf[0, 0, 0] if leaf.shape[:3] == (1, 1, 1) else leaf, tree
    )

    def change(state):
        state["params_ema"] = squeeze(state["params_ema"])

    flax_file(tmp_path / "checkpoint_1", change)
    assert same(read(tmp_path / "checkpoint_1").ema, reference.trained(WITH_MOMENTS).ema)


def remove_ema(state):
    state["ema"]["shadow_params"].pop()


def swap_ema(state):
    shadow = state["ema"]["shadow_params"]
    shadow[0], shadow[-1] = shadow[-1], shadow[0]


def remove_weight(state):
    del state["model"]["module.all_modules.2.bias"]


def add_weight(state):
    state["model"]["module.all_modules.99.bias"] = state["model"]["module.all_modules.2.bias"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (remove_ema, "275 shadow parameters for 276 trained ones"),
        (swap_ema, "(its ema) does not fit the config: all_modules.0.weight has shape"),
        (
            remove_weight,
            "all_modules.2.bias, which the network has with shape (4,), is not in the file",
        ),
        (add_weight, "the network has no place for all_modules.99.bias"),
        (lambda state: state.pop("ema"), "it has no 'ema'"),
    ],
)
def test_pytorch_files_that_do_not_fit_are_refused(tmp_path, change, sentence):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    state = torch.load(official("checkpoint_torch.pth"), weights_only=True)
    change(state)
    torch.save(state, tmp_path / "checkpoint_1.pth")
    with pytest.raises(InputError, match=re.escape(sentence)):
        read(tmp_path / "checkpoint_1.pth")


class Malice:
    def __reduce__(self):
        return print, ("this must never run",)


def test_pickles_are_not_executed(tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    torch.save({"model": Malice()}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="no PyTorch checkpoint of tensors alone"):
        read(tmp_path / "bad.pth")
    assert "never run" not in capsys.readouterr().out


def test_pytorch_is_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(InputError, match="needs PyTorch, which is not here: pip install torch"):
        read(official("checkpoint_torch.pth"))


def test_noise_scales_of_another_config_are_noticed(tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    c = reference.config(WITH_MOMENTS)
    c.model.sigma_max = 90
    with pytest.raises(
        InputError, match="it has 1000 noise scales from 50 to 0.01; model.num_scales"
    ):
        conversion.import_checkpoint(c, str(tmp_path / "w"), official("checkpoint_torch.pth"))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<!DOCTYPE html><html>", "It looks like a web page"),
        (b"", "is no checkpoint of a known kind"),
        (b"\x87\xa4step", "no complete msgpack file"),
        (b"PK\x03\x04 and nothing more", "no PyTorch checkpoint of tensors alone"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "no complete safetensors file"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path, content, sentence):
    if content.startswith(b"PK"):
        pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    (tmp_path / "checkpoint_1").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path / "checkpoint_1")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read(tmp_path / "nothing")


def test_nothing_is_overwritten(tmp_path):
    c = reference.config(WITH_MOMENTS)
    assert conversion.import_checkpoint(c, str(tmp_path / "w"), official("checkpoint_flax")) == 1
    with pytest.raises(InputError, match="has a checkpoint_1 already; nothing is overwritten"):
        conversion.import_checkpoint(c, str(tmp_path / "w"), official("checkpoint_flax"))
    with pytest.raises(InputError, match="has no checkpoint_5; the kept checkpoints there are: 1"):
        conversion.export_checkpoint(c, str(tmp_path / "w"), str(tmp_path / "out"), 5)
    with pytest.raises(InputError, match="exists; nothing is overwritten"):
        conversion.export_checkpoint(c, str(tmp_path / "w"), str(tmp_path / "w" / "config.json"))


def test_networks_that_pytorch_does_not_have(tmp_path):
    experiment, trained = (
        reference.experiment("ve_ncsnv2_cifar10"),
        reference.trained("ve_ncsnv2_cifar10"),
    )
    with pytest.raises(InputError, match="NCSNv2 networks are not in the official PyTorch code"):
        pretrained.writer("n.pth")(io.BytesIO(), trained, experiment.network, experiment.config)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path):
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"was not written by --mode=export \(it holds weight\)"):
        read(tmp_path / "m.safetensors")
