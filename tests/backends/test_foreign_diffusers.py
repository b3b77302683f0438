"""Pipelines of diffusers from a folder: tiny ones with random weights, as `save_pretrained` writes them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from backends.base import Batch
from backends.foreign.diffusers import Diffusers
from harness import contract

os.environ["HF_HUB_OFFLINE"] = "1"  # read on import
diffusers = pytest.importorskip("diffusers", reason="needs the extra diffusers")
transformers = pytest.importorskip("transformers", reason="needs the extra diffusers")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),  # theirs
]

BLOCKS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
DECODER = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (4, 4, 4),
    "norm_num_groups": 2,
}
UNET = Path("unet/diffusion_pytorch_model.safetensors")


def latent_diffusion(folder: Path) -> None:
    """Latent diffusion for super-resolution: three levels in the decoder enlarge by 4."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        in_channels=6,
        out_channels=3,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **BLOCKS,
    )
    vqvae = diffusers.VQModel(latent_channels=3, num_vq_embeddings=32, vq_embed_dim=3, **DECODER)
    scheduler = diffusers.DDIMScheduler(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    pipe = diffusers.LDMSuperResolutionPipeline(vqvae=vqvae, unet=unet, scheduler=scheduler)
    pipe.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny model\n")


def stable_diffusion(folder: Path) -> None:
    """Stable Diffusion's x4 upscaler."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        in_channels=7,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        num_class_embeds=1000,
        **BLOCKS,
    )
    text = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "vocab_size": 3}
    pipe = diffusers.StableDiffusionUpscalePipeline(
        vae=diffusers.AutoencoderKL(latent_channels=4, scaling_factor=0.08333, **DECODER),
        text_encoder=transformers.CLIPTextModel(transformers.CLIPTextConfig(**text, **ends)),
        tokenizer=transformers.CLIPTokenizer(vocab=words, merges=[], model_max_length=77),
        unet=unet,
        low_res_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear"),
    )
    pipe.save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    made = {"ldm": tmp_path_factory.mktemp("ldm"), "x4": tmp_path_factory.mktemp("x4")}
    latent_diffusion(made["ldm"])
    stable_diffusion(made["x4"])
    return made


@pytest.fixture
def ldm(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the latent diffusion folder, to be spoilt."""
    return shutil.copytree(folders["ldm"], tmp_path / "ldm")


PUBLISHED = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
"""Attention layers of autoencoders and of UNet2DModel, and their names in the weights published in 2022."""


def as_published(folder: Path) -> None:
    """Rename the tensors of a folder to what publishers' files call them, which the libraries no longer write."""
    for path in folder.rglob("*.safetensors"):
        state = load_file(path)
        if path.parent.name == "text_encoder":
            state = {f"text_model.{name}": tensor for name, tensor in state.items()}
            state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        for new, old in PUBLISHED.items():
            state = {n if "transformer" in n else n.replace(f".{new}", f".{old}"): t for n, t in state.items()}
        save_file(state, path, {"format": "pt"})


def batch(backend: Diffusers, *seeds: int, **options: str | int) -> Batch:
    """Equal images of noise, an image a seed."""
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    n = len(seeds)
    chosen = {o.name: o.default for o in backend.description.options} | {"steps": 2} | options
    return Batch(image.repeat(n, axis=0), 4, tuple("abcd"[:n]), seeds, chosen, (None,) * n, (None,) * n)


def test_a_served_pipeline_keeps_the_contract(folders: dict[str, Path]) -> None:
    """`diffusers:PATH` names it; the kit finds nothing but that random weights make no pictures."""
    results = contract.check(f"diffusers:{folders['x4']},steps=2")
    assert len(results) == len(contract.CHECKS)
    assert {r.name for r in results if not r.passed} <= {"returns the picture it was sent"}


def test_a_pipeline_is_described(folders: dict[str, Path]) -> None:
    """The scale is the decoder's; sizes are those that neither the pipeline nor its networks would change."""
    ldm, x4 = (Diffusers(str(folders[kind])).description for kind in ("ldm", "x4"))
    assert (ldm.scales, ldm.minimum, ldm.multiple_of) == ((4,), 32, 32)
    assert (x4.scales, x4.minimum, x4.multiple_of) == ((4,), 4, 4)
    assert (ldm.licence, x4.licence[:17]) == ("apache-2.0, says its README.md", "not in the folder")
    assert [o.name for o in x4.options] == ["steps", "spacing", "noise_level"]
    assert ldm.digest != x4.digest


@pytest.mark.parametrize("kind", ["ldm", "x4"])
def test_each_image_has_its_seed(folders: dict[str, Path], kind: str) -> None:
    """An image depends on its seed and not on the others of its batch; each evaluation of the network is told."""
    backend, told = Diffusers(str(folders[kind])), []
    together = backend.upscale(batch(backend, 7, 8), lambda *step: told.append(step))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    alone = backend.upscale(batch(backend, 8), lambda *_: None)
    np.testing.assert_array_equal(together[1], alone[0])
    assert np.abs(together[0] - together[1]).max() > 1


@pytest.mark.parametrize(("kind", "parts"), [("ldm", {"unet", "vqvae"}), ("x4", {"vae", "text_encoder"})])
def test_names_of_published_weights_are_read(
    folders: dict[str, Path], tmp_path: Path, kind: str, parts: set[str]
) -> None:
    """Under the tensor names of the weights published in 2022, the pipeline gives the same picture."""
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    as_published(folder)
    files = [path.relative_to(folder) for path in folder.rglob("*.safetensors")]
    assert {f.parts[0] for f in files if load_file(folder / f).keys() != load_file(folders[kind] / f).keys()} == parts
    now, published = (Diffusers(str(path)) for path in (folders[kind], folder))
    first, second = (backend.upscale(batch(backend, 1), lambda *_: None) for backend in (now, published))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", ["ldm", "x4"])
def test_half_precision_gives_pictures_too(folders: dict[str, Path], kind: str) -> None:
    """In bfloat16 the output is about that of float32, over its whole range."""
    exact, rounded = (Diffusers(str(folders[kind]), precision=name) for name in ("float32", "bfloat16"))
    assert rounded.description.precision == "bfloat16"
    first, second = (backend.upscale(batch(backend, 1), lambda *_: None).ravel() for backend in (exact, rounded))
    assert np.ptp(first) > 100
    assert np.corrcoef(first, second)[0, 1] > 0.9


def test_sampling_starts_in_noise_if_asked(folders: dict[str, Path]) -> None:
    """`trailing` steps begin at the last of the training's, `leading` ones, as published, before it."""
    backend, seen = Diffusers(str(folders["ldm"])), []
    backend.pipe.unet.register_forward_pre_hook(lambda _module, arguments: seen.append(int(arguments[1])))
    for spacing in ("leading", "trailing"):
        backend.upscale(batch(backend, 1, spacing=spacing), lambda *_: None)
    assert seen == [500, 0, 999, 499]


def edit(path: Path, **values: object) -> None:
    """Change a file of configuration."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pickled(folder: Path) -> None:
    """Weights as a pickle alone."""
    torch.save(load_file(folder / UNET), folder / "unet/diffusion_pytorch_model.bin")
    (folder / UNET).unlink()


def missing(folder: Path) -> None:
    """A tensor left out."""
    state = load_file(folder / UNET)
    save_file({name: t for name, t in state.items() if name != "conv_in.bias"} | {"x": torch.zeros(99)}, folder / UNET)


def reshaped(folder: Path) -> None:
    """A tensor of another shape."""
    save_file(load_file(folder / UNET) | {"conv_in.bias": torch.zeros(99)}, folder / UNET)


def vast(folder: Path) -> None:
    """A configuration that describes 10 GB."""
    edit(folder / "unet/config.json", block_out_channels=[8, 16_384])


def damaged(folder: Path) -> None:
    """Weights cut off."""
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100])


def another(folder: Path) -> None:
    """Another pipeline."""
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")


def noisy(folder: Path) -> None:
    """A scheduler that draws noise at each step."""
    edit(folder / "scheduler/scheduler_config.json", _class_name="EulerAncestralDiscreteScheduler")


def endless(folder: Path) -> None:
    """A schedule of more steps than memory holds."""
    edit(folder / "scheduler/scheduler_config.json", num_train_timesteps=10**12)


def no_index(folder: Path) -> None:
    """Something else than a pipeline's folder."""
    (folder / "model_index.json").unlink()


def coded(folder: Path) -> None:
    """A configuration that asks for code."""
    edit(folder / "unet/config.json", auto_map={"AutoModel": "evil.Model"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (pickled, "one file of safetensors is needed"),
        (missing, "conv_in.bias"),
        (reshaped, "conv_in.bias"),
        (vast, "config.json describes .* weights, the file holds"),
        (damaged, "is damaged"),
        (another, "StableDiffusionPipeline is not served"),
        (noisy, "EulerAncestralDiscreteScheduler is not served"),
        (endless, "num_train_timesteps"),
        (no_index, "model_index.json: there is no such file"),
        (coded, "auto_map"),
    ],
)
def test_a_wrong_folder_is_refused(ldm: Path, spoil: Callable[[Path], None], message: str) -> None:
    """What is no upscaling pipeline with all its weights is refused by one line."""
    spoil(ldm)
    with pytest.raises(ValueError, match=message) as caught:
        Diffusers(str(ldm))
    assert "\n" not in str(caught.value)


def test_no_module_of_the_folder_is_imported(ldm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that names a module of its own gets the classes that are known, and its module is not run."""
    (ldm / "unet/evil.py").write_text("import pathlib; pathlib.Path(__file__).with_name('victim').touch()")
    edit(ldm / "model_index.json", unet=["evil", "UNet2DModel"])
    monkeypatch.syspath_prepend(ldm / "unet")
    assert type(Diffusers(str(ldm)).pipe.unet).__name__ == "UNet2DModel"
    assert not (ldm / "unet/victim").exists()
