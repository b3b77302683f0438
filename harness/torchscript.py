"""TorchScript files, read so that they compute and do nothing else.

A TorchScript file is a zip archive of a program and its tensors. The program can write files (`torch.save`), and can
run while it is loaded (`__setstate__`), so nothing is handed to PyTorch before it is checked:

- a word of the program that names any operator known to PyTorch must be in `OPERATORS`, wherever it stands, so that
  no spelling of a call (alias, method, getattr, line break) gets past;
- its pickles may name classes of the program itself and the few functions that rebuild tensors;
- PyTorch receives a new archive of the members that were checked, not the file, which it might read differently.

What is left can still need much time and memory, as an ONNX graph can.
"""

import io
import pickletools
import re
import warnings
import zipfile
from typing import TYPE_CHECKING

from harness.errors import ConfigError, one_line

if TYPE_CHECKING:
    import torch

MAX_BYTES = 2**30  # of all members, unpacked
MAX_TEXT_BYTES = 2**24  # of the program and the pickles, each of them
MAX_MEMBERS = 20_000

_OPERATORS = """
    NumToTensor RaiseException __and__ __contains__ __getitem__ __is__ __isnot__ __not__ __or__ _convolution
    _native_multi_head_attention _set_item abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add add_
    addmm all amax amin annotate any append arange argmax avg_pool1d avg_pool2d baddbmm batch_norm bernoulli_ bmm
    broadcast_tensors cat ceil celu channel_shuffle chunk clamp clamp_ clamp_max clamp_min clamp_min_ clone
    constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d copy copy_ cos cpu cuda cumsum
    detach device dict dim div div_ dropout dropout_ dtype einsum elu elu_ embedding empty eq exp expand expand_as
    fill_ flatten flip floor floor_divide floordiv format full full_like gather ge gelu glu grad greater
    grid_sampler group_norm gt hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ im2col index
    index_select instance_norm is_autocast_enabled is_floating_point is_grad_enabled is_nested layer_norm layout
    le leaky_relu leaky_relu_ len linalg_vector_norm linear list log log_softmax logical_and logical_not logical_or
    lt masked_fill masked_fill_ matmul max max_pool1d max_pool2d maximum mean min minimum mish mish_ mm mode mul
    mul_ name narrow ne neg negative new_zeros norm numel ones ones_like pad permute pin_memory
    pixel_shuffle pixel_unshuffle positive pow prelu range reciprocal reflection_pad2d relu relu6 relu_ remainder
    repeat repeat_interleave replication_pad2d requires_grad reshape roll round rsqrt rsub scalar_tensor
    scaled_dot_product_attention select selu selu_ set sigmoid sigmoid_ sign silu silu_ sin size slice softmax
    softplus split split_with_sizes sqrt squeeze stack std str stride sub sub_ sum swapaxes t tanh tanh_ tensor
    threshold to topk transpose trunc type type_as unbind unchecked_cast unflatten unfold unsqueeze
    upsample_bicubic2d upsample_bilinear2d upsample_nearest2d values var view view_as warn where zero_ zeros
    zeros_like
"""  # of inference networks, of any overload
OPERATORS = frozenset(_OPERATORS.split())
REFUSED = frozenset({"__setstate__", "classes", "print"})  # run on loading, classes of C++, writes to stdout
GLOBALS = frozenset(
    {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch.jit._pickle restore_type_tag"}
    | {f"torch.jit._pickle build_{kind}list" for kind in ("int", "double", "bool", "tensor")}
    | {f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char")}
    | {f"torch {kind}Storage" for kind in ("Byte", "Bool")}
)

_MEMBERS = re.compile(r"[^/]+/(code/.+\.py|(data|constants)(\.pkl|/\d+)|(\.data/)?version|byteorder)")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_GETATTR = re.compile(r"""\bgetattr\(\w+, "[^"'\\]*"\)""", re.ASCII)
_NAMING = frozenset({"INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})  # name functions in ways TorchScript never does


def is_torchscript(data: bytes) -> bool:
    """Whether a file is a zip archive with a program of TorchScript."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(re.match(r"[^/]+/code/", name) for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def load(data: bytes, where: str) -> "torch.jit.ScriptModule":
    """The network of a TorchScript file, on the CPU, in evaluation mode.

    Raises:
        ConfigError: the file is damaged or too large, or its program does more than compute.
    """
    import torch

    checked = _checked(data, where)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".torch.jit.load. is")  # deprecated: the file is the user's choice
            network: torch.jit.ScriptModule = torch.jit.load(checked, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # the reader of PyTorch raises any type on damaged files
        raise ConfigError(f"{where}: not TorchScript that can be loaded: {one_line(str(error), 160)}") from error
    return network.eval()


def _checked(data: bytes, where: str) -> io.BytesIO:
    """A new archive of the members that TorchScript reads, after their check."""
    copy = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(copy, "w") as checked:
            members = [member for member in archive.infolist() if _MEMBERS.fullmatch(member.filename)]
            _check_sizes(members, where)
            for member in members:
                content = archive.read(member)
                _check_member(member.filename, content, where)
                checked.writestr(member.filename, content)
    except ConfigError:
        raise
    except Exception as error:  # zipfile and pickletools raise any type on damaged archives
        raise ConfigError(f"{where}: a damaged TorchScript file: {one_line(str(error), 160)}") from error
    copy.seek(0)
    return copy


def _check_sizes(members: list[zipfile.ZipInfo], where: str) -> None:
    texts = sum(member.file_size for member in members if member.filename.endswith((".py", ".pkl")))
    too_large = texts > MAX_TEXT_BYTES or sum(member.file_size for member in members) > MAX_BYTES
    if too_large or len(members) > MAX_MEMBERS:
        raise ConfigError(f"{where}: unpacks to more than a measuring network needs; give a smaller one")


def _check_member(name: str, content: bytes, where: str) -> None:
    if name.endswith(".py"):
        _check_program(content.decode("utf-8"), where)
    elif name.endswith(".pkl"):
        _check_pickle(content, where)


def _check_program(text: str, where: str) -> None:
    import torch

    known = {schema.name.rpartition("::")[2] for schema in torch._C._jit_get_all_schemas()}  # noqa: SLF001 - no other
    refused = (known - OPERATORS) | REFUSED
    words = _WORD.findall(text)
    found = next((word for word in words if word in refused), "")
    if not found and words.count("getattr") != len(_PLAIN_GETATTR.findall(text)):
        found = "getattr"
    if found:
        raise _not_run(found, where)


def _check_pickle(content: bytes, where: str) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        name = str(argument)
        own = name.startswith(("__torch__.", "__torch__ ")) and ".classes." not in name
        if opcode.name in _NAMING or (opcode.name == "GLOBAL" and not own and name not in GLOBALS):
            raise _not_run(name, where)


def _not_run(name: str, where: str) -> ConfigError:
    return ConfigError(
        f"{where}: a TorchScript program that uses {one_line(name, 60)!r}, which is not one of the numeric operators "
        "that are run; export the network as ONNX, by torch.onnx.export"
    )
