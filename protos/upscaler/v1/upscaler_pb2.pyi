import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Family(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAMILY_UNSPECIFIED: _ClassVar[Family]
    FAMILY_INTERPOLATION: _ClassVar[Family]
    FAMILY_REGRESSION: _ClassVar[Family]
    FAMILY_GAN: _ClassVar[Family]
    FAMILY_DIFFUSION: _ClassVar[Family]
    FAMILY_REPLAY: _ClassVar[Family]
    FAMILY_OTHER: _ClassVar[Family]

class Capability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAPABILITY_UNSPECIFIED: _ClassVar[Capability]
    CAPABILITY_STREAM: _ClassVar[Capability]
    CAPABILITY_PROGRESS: _ClassVar[Capability]
    CAPABILITY_GRADIENT: _ClassVar[Capability]
    CAPABILITY_GENERATE: _ClassVar[Capability]
FAMILY_UNSPECIFIED: Family
FAMILY_INTERPOLATION: Family
FAMILY_REGRESSION: Family
FAMILY_GAN: Family
FAMILY_DIFFUSION: Family
FAMILY_REPLAY: Family
FAMILY_OTHER: Family
CAPABILITY_UNSPECIFIED: Capability
CAPABILITY_STREAM: Capability
CAPABILITY_PROGRESS: Capability
CAPABILITY_GRADIENT: Capability
CAPABILITY_GENERATE: Capability

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("name", "family", "digest", "scales", "sizes", "channels", "deterministic", "batch_exact", "classes", "options", "device", "precision", "licence", "capabilities", "max_message_bytes", "max_batch", "domain", "warm_up_time", "generated_size")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    BATCH_EXACT_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    LICENCE_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    WARM_UP_TIME_FIELD_NUMBER: _ClassVar[int]
    GENERATED_SIZE_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: Family
    digest: str
    scales: _containers.RepeatedScalarFieldContainer[int]
    sizes: SizeRequirements
    channels: int
    deterministic: bool
    batch_exact: bool
    classes: _containers.RepeatedScalarFieldContainer[str]
    options: _containers.RepeatedCompositeFieldContainer[OptionSpec]
    device: str
    precision: str
    licence: str
    capabilities: _containers.RepeatedScalarFieldContainer[Capability]
    max_message_bytes: int
    max_batch: int
    domain: str
    warm_up_time: _duration_pb2.Duration
    generated_size: int
    def __init__(self, name: _Optional[str] = ..., family: _Optional[_Union[Family, str]] = ..., digest: _Optional[str] = ..., scales: _Optional[_Iterable[int]] = ..., sizes: _Optional[_Union[SizeRequirements, _Mapping]] = ..., channels: _Optional[int] = ..., deterministic: _Optional[bool] = ..., batch_exact: _Optional[bool] = ..., classes: _Optional[_Iterable[str]] = ..., options: _Optional[_Iterable[_Union[OptionSpec, _Mapping]]] = ..., device: _Optional[str] = ..., precision: _Optional[str] = ..., licence: _Optional[str] = ..., capabilities: _Optional[_Iterable[_Union[Capability, str]]] = ..., max_message_bytes: _Optional[int] = ..., max_batch: _Optional[int] = ..., domain: _Optional[str] = ..., warm_up_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., generated_size: _Optional[int] = ...) -> None: ...

class SizeRequirements(_message.Message):
    __slots__ = ("minimum", "maximum", "multiple_of", "domain_minimum")
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    MULTIPLE_OF_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_MINIMUM_FIELD_NUMBER: _ClassVar[int]
    minimum: int
    maximum: int
    multiple_of: int
    domain_minimum: int
    def __init__(self, minimum: _Optional[int] = ..., maximum: _Optional[int] = ..., multiple_of: _Optional[int] = ..., domain_minimum: _Optional[int] = ...) -> None: ...

class OptionSpec(_message.Message):
    __slots__ = ("name", "help", "default_value", "choices", "minimum", "maximum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HELP_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VALUE_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    help: str
    default_value: OptionValue
    choices: _containers.RepeatedScalarFieldContainer[str]
    minimum: float
    maximum: float
    def __init__(self, name: _Optional[str] = ..., help: _Optional[str] = ..., default_value: _Optional[_Union[OptionValue, _Mapping]] = ..., choices: _Optional[_Iterable[str]] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ...) -> None: ...

class OptionValue(_message.Message):
    __slots__ = ("boolean", "integer", "number", "text")
    BOOLEAN_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    boolean: bool
    integer: int
    number: float
    text: str
    def __init__(self, boolean: _Optional[bool] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class InputImage(_message.Message):
    __slots__ = ("id", "height", "width", "data", "seed", "class_index", "conditioning_level")
    ID_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_LEVEL_FIELD_NUMBER: _ClassVar[int]
    id: str
    height: int
    width: int
    data: bytes
    seed: int
    class_index: int
    conditioning_level: float
    def __init__(self, id: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ..., seed: _Optional[int] = ..., class_index: _Optional[int] = ..., conditioning_level: _Optional[float] = ...) -> None: ...

class OutputImage(_message.Message):
    __slots__ = ("id", "height", "width", "data")
    ID_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    height: int
    width: int
    data: bytes
    def __init__(self, id: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class UpscaleRequest(_message.Message):
    __slots__ = ("images", "scale", "options")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[OptionValue, _Mapping]] = ...) -> None: ...
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[InputImage]
    scale: int
    options: _containers.MessageMap[str, OptionValue]
    def __init__(self, images: _Optional[_Iterable[_Union[InputImage, _Mapping]]] = ..., scale: _Optional[int] = ..., options: _Optional[_Mapping[str, OptionValue]] = ...) -> None: ...

class UpscaleResponse(_message.Message):
    __slots__ = ("images", "digest", "queue_time", "compute_time", "peak_device_memory")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_TIME_FIELD_NUMBER: _ClassVar[int]
    PEAK_DEVICE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[OutputImage]
    digest: str
    queue_time: _duration_pb2.Duration
    compute_time: _duration_pb2.Duration
    peak_device_memory: int
    def __init__(self, images: _Optional[_Iterable[_Union[OutputImage, _Mapping]]] = ..., digest: _Optional[str] = ..., queue_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compute_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., peak_device_memory: _Optional[int] = ...) -> None: ...

class UpscaleStreamRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UpscaleRequest
    chunk: bytes
    def __init__(self, header: _Optional[_Union[UpscaleRequest, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UpscaleStreamResponse(_message.Message):
    __slots__ = ("progress", "header", "chunk")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    header: UpscaleResponse
    chunk: bytes
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., header: _Optional[_Union[UpscaleResponse, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("done", "total")
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    done: int
    total: int
    def __init__(self, done: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class GradientInput(_message.Message):
    __slots__ = ("id", "height", "width", "data", "seed", "class_index", "conditioning_level", "cotangent")
    ID_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONDITIONING_LEVEL_FIELD_NUMBER: _ClassVar[int]
    COTANGENT_FIELD_NUMBER: _ClassVar[int]
    id: str
    height: int
    width: int
    data: bytes
    seed: int
    class_index: int
    conditioning_level: float
    cotangent: bytes
    def __init__(self, id: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ..., seed: _Optional[int] = ..., class_index: _Optional[int] = ..., conditioning_level: _Optional[float] = ..., cotangent: _Optional[bytes] = ...) -> None: ...

class GradientOutput(_message.Message):
    __slots__ = ("id", "height", "width", "data", "gradient")
    ID_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    id: str
    height: int
    width: int
    data: bytes
    gradient: bytes
    def __init__(self, id: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ..., gradient: _Optional[bytes] = ...) -> None: ...

class GradientRequest(_message.Message):
    __slots__ = ("images", "scale", "options")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[OptionValue, _Mapping]] = ...) -> None: ...
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[GradientInput]
    scale: int
    options: _containers.MessageMap[str, OptionValue]
    def __init__(self, images: _Optional[_Iterable[_Union[GradientInput, _Mapping]]] = ..., scale: _Optional[int] = ..., options: _Optional[_Mapping[str, OptionValue]] = ...) -> None: ...

class GradientResponse(_message.Message):
    __slots__ = ("images", "digest", "queue_time", "compute_time", "peak_device_memory")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_TIME_FIELD_NUMBER: _ClassVar[int]
    PEAK_DEVICE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[GradientOutput]
    digest: str
    queue_time: _duration_pb2.Duration
    compute_time: _duration_pb2.Duration
    peak_device_memory: int
    def __init__(self, images: _Optional[_Iterable[_Union[GradientOutput, _Mapping]]] = ..., digest: _Optional[str] = ..., queue_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compute_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., peak_device_memory: _Optional[int] = ...) -> None: ...

class GenerateInput(_message.Message):
    __slots__ = ("id", "seed", "class_index")
    ID_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CLASS_INDEX_FIELD_NUMBER: _ClassVar[int]
    id: str
    seed: int
    class_index: int
    def __init__(self, id: _Optional[str] = ..., seed: _Optional[int] = ..., class_index: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("images", "options")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[OptionValue, _Mapping]] = ...) -> None: ...
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[GenerateInput]
    options: _containers.MessageMap[str, OptionValue]
    def __init__(self, images: _Optional[_Iterable[_Union[GenerateInput, _Mapping]]] = ..., options: _Optional[_Mapping[str, OptionValue]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("images", "digest", "queue_time", "compute_time", "peak_device_memory")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_TIME_FIELD_NUMBER: _ClassVar[int]
    PEAK_DEVICE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[OutputImage]
    digest: str
    queue_time: _duration_pb2.Duration
    compute_time: _duration_pb2.Duration
    peak_device_memory: int
    def __init__(self, images: _Optional[_Iterable[_Union[OutputImage, _Mapping]]] = ..., digest: _Optional[str] = ..., queue_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., compute_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., peak_device_memory: _Optional[int] = ...) -> None: ...
