"""Import and export of checkpoints of other code bases, and errors for files that do not fit."""

import copy
import errno
import functools
import io
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, serialization, traverse_util
from safetensors.numpy import load_file, save_file

import pretrained
from commands import conversion
from configs.folders import flatten
from configs.ve import church_ncsnpp_continuous
from configs.vp.ddpm import cifar10 as ddpm_cifar10
from errors import InputError
from experiment import Experiment
from loading import load_config
from models import building, layers
from models.ncsnpp import NCSNpp
from pretrained import flax_format, safetensors_format, torch_format
from pretrained.diffusers_unet import unet_layout
from pretrained.parameter_names import flax_layout, torch_layout
from pretrained.stored_parameters import Trained, export_params, load_params
from tests import reference, tiny
from tests.refusal import refused
from tests.test_networks import SMALL

TREES = safetensors_format.TREES
FORMATS = {"flax": "checkpoint_7", "torch": "checkpoint_7.pth", "safetensors": "seven.safetensors"}
WITH_MOMENTS = "ve_cifar10_ncsnpp"


def same(a, b) -> bool:
    """Whether two trees have equal arrays."""
    a, b = (traverse_util.flatten_dict(tree) for tree in (a, b))
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def official(name: str, folder: str = WITH_MOMENTS) -> str:
    """The path of a recorded checkpoint."""
    return str(reference.find(f"{folder}/{name}"))


def parts(folder: str = WITH_MOMENTS) -> tuple:
    """A recorded checkpoint, its network and its config."""
    experiment = reference.experiment(folder)
    return reference.trained(folder), experiment.network, experiment.config


def write(path, trained, network, config, **options):
    with open(path, "wb") as file:
        pretrained.writer(path, **options)(file, trained, network, config)
    return path


def small_ncsnpp(**options) -> NCSNpp:
    """A small NCSN++ without parameter values."""
    rngs = layers.Rngs(jax.random.key(0))
    return building.abstract_network(lambda: NCSNpp(**SMALL, **options, rngs=rngs))


# --- names ---


@pytest.mark.parametrize(
    "folder", ["ve_bedroom_ncsnpp_continuous", "vp_cifar10_ncsnpp", "vp_ddpm_cifar10"]
)
def test_recorded_names(folder):
    """The Flax name for every PyTorch name equals the name recorded with the official code."""
    recorded = json.loads(reference.find(f"{folder}/torch_to_flax.json").read_text())
    network = reference.experiment(folder).network
    flax_names = {stored.path: stored.names[0] for stored in flax_layout(network)}
    ours = {
        f"module.{stored.names[0]}": flax_names[stored.path] for stored in torch_layout(network)
    }
    assert ours == {name: flax_name for name, (flax_name, _) in recorded.items()}


OPTIONS = [
    {"fir": True, "progressive": "residual", "progressive_input": "residual"},
    {"fir": True, "progressive_input": "residual", "resblock_type": "ddpm"},
    {"progressive": "output_skip", "progressive_input": "input_skip", "progressive_combine": "cat"},
    {"resblock_type": "ddpm", "resamp_with_conv": False, "embedding_type": "fourier"},
    {"conditional": False},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_layouts_contain_every_parameter_once(options):
    network = small_ncsnpp(**options)
    rng = np.random.default_rng(0)
    shapes = nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    for layout in (flax_layout(network), torch_layout(network)):
        assert len({stored.names[0] for stored in layout}) == len(layout)
        paths = {stored.path for stored in layout if stored.path}
        assert len(paths) == len(jax.tree.leaves(params))
        assert same(load_params(layout, export_params(layout, params), "tensors"), params)


def test_tensors_on_which_no_output_depends():
    """PyTorch's NCSN++ has layers for noise levels even if it is unconditional."""

    def names_and_shapes(layout):
        return [(stored.names[0].split(".", 2)[2], stored.file_shape) for stored in layout]

    conditional = torch_layout(small_ncsnpp(conditional=True))
    unconditional = torch_layout(small_ncsnpp(conditional=False))
    # The only difference is the embedding: the weights and biases of two dense layers.
    assert names_and_shapes(unconditional) == names_and_shapes(conditional)[4:]
    unused = [stored for stored in unconditional if not stored.path]
    assert unused
    assert all(".Dense_0." in stored.names[0] for stored in unused)


# --- round trips ---


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "folder", ["ve_cifar10_ncsnpp", "ve_cifar10_ncsnpp_continuous", "vp_ddpm_cifar10"]
)
def test_reading_inverts_writing(tmp_path, folder, kind):
    """This includes Fourier frequencies, of which PyTorch's moving average has no entry."""
    if kind == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    trained, network, config = parts(folder)
    if trained.mu is None:
        fixed = {each.path for each in torch_layout(network) if not each.has_gradient}
        moments = traverse_util.path_aware_map(
            lambda path, a: 0 * a if path in fixed else a, trained.params
        )
        trained = trained._replace(mu=moments, nu=jax.tree.map(np.square, moments), updates=5)
    path = write(tmp_path / FORMATS[kind], trained, network, config)
    again = pretrained.read(path, network, config)
    assert (again.step, again.updates) == (trained.step, trained.updates)
    if kind == "torch" and "fourier" in trained.ema:
        frozen = {"fourier": trained.params["fourier"]}  # They are their own averages.
        trained = trained._replace(ema=trained.ema | frozen)
    assert all(same(getattr(again, tree), getattr(trained, tree)) for tree in TREES)

    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):  # The caller reports it with the file.
        pretrained.writer(path)(Full(), trained, network, config)


def test_files_of_the_moving_average(tmp_path):
    """They have half-precision values, an eighth of the size, and their own config."""
    trained, network, config = parts()
    small, large = (
        write(tmp_path / f"{only}.safetensors", trained, network, config, average_only=only)
        for only in (True, False)
    )
    again = pretrained.read(small, network, config)
    assert (again.step, again.mu, again.nu) == (trained.step, None, None)
    for tree in (again.params, again.ema):
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(trained.ema), strict=True):
            assert a.dtype == np.float32
            np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25)
    sizes = [sum(array.nbytes for array in load_file(path).values()) for path in (small, large)]
    assert 8 * sizes[0] == sizes[1]
    for path in (small, large):
        assert flatten(load_config(path)) == flatten(config)
    refused("not 'a.pth'", pretrained.writer, "a.pth", average_only=True)
    beyond = trained._replace(ema=jax.tree.map(lambda a: a + 1e5, trained.ema))
    refused("float16", safetensors_format.write_average, io.BytesIO(), beyond, network, config)


@pytest.mark.parametrize("config", ["", "[1]", "{", "9" * 5000])
def test_files_that_state_no_config(tmp_path, config):
    path = tmp_path / "m.safetensors"
    save_file({"ema/a": np.zeros(3, np.float32)}, path, {"step": "1", "config": config})
    refused("m.safetensors (contains no|is damaged: its) config", load_config, path)


def test_training_states_contain_everything_in_a_file():
    experiment, trained = reference.experiment(WITH_MOMENTS), reference.trained(WITH_MOMENTS)
    again = conversion.from_state(jax.device_get(conversion.to_state(trained, experiment)))
    assert (again.step, again.updates) == (trained.step, trained.updates)
    assert all(same(getattr(again, tree), getattr(trained, tree)) for tree in TREES)


def leaves(tree, path=""):
    """Yield the path and the value of each leaf of nested containers, and what these contain.

    The order of names counts only in PyTorch's model, of which other parts are lists.
    """
    if isinstance(tree, dict):
        yield path, [*tree] if path == "/model" else sorted(map(str, tree))
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, (list, tuple)):
        yield path, len(tree)
        for number, value in enumerate(tree):
            yield from leaves(value, f"{path}/{number}")
    else:
        yield path, tree


def test_files_are_written_as_the_official_code_writes_them(tmp_path):
    """In both formats; keys of random numbers and a count of PyTorch's average are not imported."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    trained, network, config = parts()
    of_torch = reference.trained(WITH_MOMENTS, "torch")
    flax = write(tmp_path / "out", trained, network, config), official("checkpoint_flax")
    pth = write(tmp_path / "out.pth", of_torch, network, config), official("checkpoint_torch.pth")
    pairs = [map(flax_format.load, flax)]
    pairs += [(torch.load(path, weights_only=True) for path in pth)]
    for ours, theirs in pairs:
        ours, theirs = (dict(leaves(tree)) for tree in (ours, theirs))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if name in ("/rng", "/ema/num_updates"):
                continue
            if not hasattr(value, "dtype"):
                assert ours[name] == value, name
                continue
            assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
            # The noise scales are computed, not copied.
            rtol = 1e-12 if name.endswith("sigmas") else 0
            np.testing.assert_allclose(ours[name], value, rtol=rtol, atol=0, err_msg=name)


# --- diffusers ---


@functools.cache
def ncsnpp_experiment():
    """An NCSN++ experiment, and the config of its model in diffusers."""
    c = church_ncsnpp_continuous.get_config()
    c.data.image_size = 16
    c.model.update(nf=32, ch_mult=(1, 4, 4), num_res_blocks=1, attn_resolutions=(8,))
    described = {"sample_size": 16, "block_out_channels": (32, 128, 128), "layers_per_block": 1}
    described |= {"time_embedding_type": "fourier", "mid_block_scale_factor": 1.41421356237}
    described |= {"center_input_sample": True, "norm_num_groups": None, "norm_eps": 1e-6}
    described |= {"attention_head_dim": None}
    for side in ("down", "up"):
        kind = f"Skip{side.title()}Block2D"
        described[f"{side}_block_types"] = (kind, f"Attn{kind}", kind)
    return Experiment(c, jax.devices()[:1]), described


@functools.cache
def ddpm_experiment():
    """A DDPM experiment, and the config of its model in diffusers."""
    c = ddpm_cifar10.get_config()
    c.data.image_size = 16
    c.model.update(nf=32, ch_mult=(1, 2), num_res_blocks=2, attn_resolutions=(16,))
    c.model.attend_after_each_up_block = True
    described = {"sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 2}
    described |= {"down_block_types": ("AttnDownBlock2D", "DownBlock2D")}
    described |= {"up_block_types": ("UpBlock2D", "AttnUpBlock2D"), "downsample_padding": 0}
    described |= {"flip_sin_to_cos": False, "freq_shift": 1, "attention_head_dim": None}
    return Experiment(c, jax.devices()[:1]), described | {"norm_eps": 1e-6}


@pytest.mark.slow
@pytest.mark.parametrize("make", [ncsnpp_experiment, ddpm_experiment])
def test_models_of_diffusers(tmp_path, make):
    """Randomly initialized models saved by diffusers have the same scores here."""
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
    label = experiment.score_model.label(t)
    with torch.no_grad():
        raw = model(torch.tensor(np.moveaxis(x, -1, 1)), torch.tensor(np.asarray(label))).sample
    outputs = jnp.moveaxis(jnp.asarray(raw.numpy()), 1, -1)
    theirs = experiment.score_model.score_from_output(outputs, x, t)
    assert reference.image_error(score, theirs) < 1e-5


def write_unet(folder, experiment, described, old_names=False):
    """Write a diffusers folder with random parameters, which are returned, without diffusers."""
    rng = np.random.default_rng(0)
    layout = unet_layout(experiment.network)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), experiment.abstract_params
    )
    tensors = export_params(layout, params)
    if old_names:
        tensors = {stored.names[-1]: tensors[stored.names[0]] for stored in layout}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(described))
    return params


def shard(folder):
    """Split the weights of a diffusers folder into two files with an index, which is returned."""
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    path.unlink()
    names = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for part in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == part}, folder / part)
    index = folder / f"{path.name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return index


@pytest.mark.parametrize("old_names", [False, True])
def test_diffusers_folders(tmp_path, old_names):
    """Folders of a pipeline, with the model in unet/, and parameter names from before 2023.

    The weights may be in several files.
    """
    experiment, described = ddpm_experiment()
    folder = tmp_path / "pipeline"
    params = write_unet(folder / "unet", experiment, described, old_names)
    if old_names:
        shard(folder / "unet")
    trained = read(folder, experiment)
    assert same(trained.params, params)
    assert same(trained.ema, params)
    imported = conversion.import_checkpoint(experiment.config, str(tmp_path / "w"), str(folder))
    assert imported == 1


def test_other_models_of_diffusers_are_errors(tmp_path):
    """Other fields, an index that lists other files, and configs that diffusers does not have."""
    experiment, described = ddpm_experiment()
    write_unet(tmp_path / "m", experiment, described)
    for field, value in {
        **{"block_out_channels": [32, 96], "downsample_padding": 1, "attention_head_dim": 8},
        **{"num_class_embeds": 10, "norm_num_groups": [], "act_fn": {}, "norm_eps": "x"},
    }.items():
        (tmp_path / "m" / "config.json").write_text(json.dumps(described | {field: value}))
        with pytest.raises(InputError, match=re.escape(f"{field}: {value!r}")):
            read(tmp_path / "m", experiment)
    (tmp_path / "m" / "config.json").write_text(json.dumps(described))
    c = experiment.config.copy_and_resolve_references()
    c.unlock()
    c.model.attend_after_each_up_block = False
    refused("attend_after_each_up_block", pretrained.read, tmp_path / "m", experiment.network, c)
    other = reference.experiment("ve_ncsnv2_cifar10")
    refused("model.name = 'ncsnv2_64'", read, tmp_path / "m", other)
    index = shard(tmp_path / "m")
    for entry in ("../x.safetensors", "/x.safetensors", "..", "a/b.safetensors", "x.bin", "", 3):
        index.write_text(json.dumps({"weight_map": {"conv_in": entry}}))
        refused(f"{tmp_path}/m", read, tmp_path / "m", experiment)


# --- files that do not fit ---


def read(source, experiment=None):
    experiment = experiment or reference.experiment(WITH_MOMENTS)
    return pretrained.read(source, experiment.network, experiment.config)


def flax_file(path, change):
    """Write the recorded Flax checkpoint, modified by `change`, to `path`."""
    state = flax_format.load(official("checkpoint_flax"))
    change(state)
    path.write_bytes(serialization.msgpack_serialize(state))


REMOVED = object()


def put(*keys, value=REMOVED):
    """A change of a training state: the entry at `keys` becomes `value`, or is removed."""

    def change(state):
        for key in keys[:-1]:
            state = state[key]
        if value is REMOVED:
            del state[keys[-1]]
        else:
            state[keys[-1]] = value

    return change


BIAS = ("params_ema", "Conv_0", "bias")
MOMENTS = ("optimizer", "state", "param_states", "Conv_0", "bias")
DAMAGED_FLAX = [
    (put(*BIAS), "Conv_0/bias"),
    (put("optimizer", "target", "Extra_0", value={"bias": np.zeros(3)}), "Extra_0/bias"),
    (put("params_ema", "Conv_0", "kernel", value=np.zeros((3, 3, 5, 4))), "shape (3, 3, 5, 4)"),
    (put("model_state", value={"batch_stats": np.zeros(3, np.float32)}), "batch_stats"),
    (put(*MOMENTS), "(its grad_ema) does not fit the config: Conv_0/bias"),
    (put(*MOMENTS, "grad_sq_ema", value=np.full(4, -1.0)), "second moments"),
    (put(*BIAS, value=np.full(4, np.nan, np.float32)), "Conv_0/bias"),
    (put(*BIAS, value="text"), "Conv_0/bias is of type str"),
    (put(*BIAS, value=np.zeros(4, complex)), "no array of numbers"),
    (put("params_ema", value={1: np.zeros(3)}), "int"),
    (put("params_ema", "\x1b[2J", value=np.zeros(3)), "\\x1b[2J"),
    (put("optimizer", "state", value={}), "'state' has no 'step'"),
    (put("ema_rate", value=2.0), "ema_rate is 2.0"),
    (put("optimizer", "state", "step", value=-1), "the optimizer's step is -1"),
    *[(put("step", value=value), f"step is {value!r}") for value in (-1, 0.5, "x", math.nan)],
    (put("step", value=2 * 10**9), "step is 2000000000"),
    (put("step", value=np.zeros(3)), "step is of type ndarray"),
]


@pytest.mark.parametrize(("change", "words"), DAMAGED_FLAX)
def test_damaged_flax_files_are_errors(tmp_path, change, words):
    flax_file(tmp_path / "checkpoint_1", change)
    refused(re.escape(words), read, tmp_path / "checkpoint_1")


def test_norm_parameters_without_padding_are_accepted(tmp_path):
    """Later versions of Flax store parameters of GroupNorm as (C,), not (1, 1, 1, C)."""

    def squeeze(leaf):
        return leaf[0, 0, 0] if leaf.shape[:3] == (1, 1, 1) else leaf

    def change(state):
        state["params_ema"] = jax.tree.map(squeeze, state["params_ema"])

    flax_file(tmp_path / "checkpoint_1", change)
    assert same(read(tmp_path / "checkpoint_1").ema, reference.trained(WITH_MOMENTS).ema)


def swap_ema(state):
    shadow = state["ema"]["shadow_params"]
    shadow[0], shadow[-1] = shadow[-1], shadow[0]


def damaged_torch(torch):
    """Changes of a training state of PyTorch, and words of the error."""
    bias = "module.all_modules.2.bias"
    return [
        (lambda state: state["ema"]["shadow_params"].pop(), "275 shadow parameters"),
        (swap_ema, "(its ema) does not fit the config: all_modules.0.weight"),
        (put("model", bias), "all_modules.2.bias"),
        (put("model", "module.all_modules.99.b", value=torch.ones(4)), "all_modules.99.b"),
        (put("model", bias, value=torch.full((4,), torch.nan)), "2.bias are not finite"),
        (put("model", bias, value="text"), "2.bias is not a tensor"),
        (put("model", bias, value=torch.zeros(1).expand(2**40)), "of shape (1099511627776,)"),
        (put("model", bias, value=torch.zeros(4).to_sparse()), "_rebuild_sparse_tensor"),
        (put("step", value=-3), "step is -3"),
        (put("ema", "decay", value="x"), "decay is 'x'"),
        (put("ema", "shadow_params", 0, value=3), "shadow_params): 0 is not a tensor"),
        (put("optimizer", "param_groups", value=[]), "'param_groups'"),
        (put("optimizer", "param_groups", 0, "params", value=["a"]), "'params'"),
        (put("optimizer", "state", 1, value={"step": 1}), "'exp_avg'"),
        (put("model", "module.sigmas", value=torch.zeros(())), "of shape ()"),
    ]


def test_damaged_pytorch_files_are_errors(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    intact = torch.load(official("checkpoint_torch.pth"), weights_only=True)
    for change, words in damaged_torch(torch):
        state = copy.deepcopy(intact)
        change(state)
        torch.save(state, tmp_path / "checkpoint_1.pth")
        refused(re.escape(words), read, tmp_path / "checkpoint_1.pth")


def test_missing_pytorch_is_an_error(monkeypatch):
    """PyTorch is needed to write its files only."""
    monkeypatch.setitem(sys.modules, "torch", None)
    refused("pip install torch", torch_format.write, io.BytesIO(), *parts())


def test_other_noise_scales_than_those_of_the_config_are_errors(tmp_path):
    c = reference.config(WITH_MOMENTS)
    c.model.sigma_max = 90
    source = str(tmp_path / "w"), official("checkpoint_torch.pth")
    refused("1000 noise scales from 50 to 0.01", conversion.import_checkpoint, c, *source)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>", "It looks like a web page"),
        (b"", "is not a checkpoint in a known format"),
        (b"\x87\xa4step", "cannot be read as Flax msgpack"),
        (b"PK\x03\x04 and nothing more", "as a PyTorch checkpoint .*download it again"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "cannot be read as safetensors"),
    ],
)
def test_files_in_other_formats_are_errors(tmp_path, content, message):
    (tmp_path / "checkpoint_1").write_bytes(content)
    refused(message, read, tmp_path / "checkpoint_1")


def test_nothing_is_overwritten(tmp_path):
    c, workdir = reference.config(WITH_MOMENTS), str(tmp_path / "w")
    source = workdir, official("checkpoint_flax")
    assert conversion.import_checkpoint(c, *source) == 1
    refused("has a checkpoint_1 already", conversion.import_checkpoint, c, *source)
    refused("no checkpoint_5", conversion.export_checkpoint, c, workdir, str(tmp_path / "out"), 5)
    refused("exists", conversion.export_checkpoint, c, workdir, f"{workdir}/config.json")


def test_networks_that_the_official_code_does_not_have():
    refused("NCSNv2", pretrained.writer("n.pth"), io.BytesIO(), *parts("ve_ncsnv2_cifar10"))
    experiment = Experiment(tiny.config(**{"model.embedding_type": "fourier_linear"}))
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), experiment.abstract_params)
    arguments = Trained(1, params, params), experiment.network, experiment.config
    for target in ("checkpoint_1", "n.pth"):
        refused("'fourier_linear'", pretrained.writer(target), io.BytesIO(), *arguments)


def test_damaged_safetensors_files_are_errors(tmp_path):
    """Files of other programs, and steps that are no numbers."""
    path = write(tmp_path / "m.safetensors", *parts())
    tensors = load_file(path)
    for step in ("", "-1", "x", "1e3", "9" * 5000, None):
        save_file(tensors, path, {"step": "7"} if step is None else {"step": step, "updates": "1"})
        refused("m.safetensors is damaged: (step|updates) is", read, path)
    save_file({"weight": np.zeros(3, np.float32)}, path)
    refused(r"it contains weight", read, path)
