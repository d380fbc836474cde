"""
Read what an accelerator, its driver or torch's build for it reports: CUDA, ROCm, Intel's GPUs. Rules as data.
"""

from failure_reasons import Rank, Rule

LOG = "cluster logs NODE -n 200"
FIT = "cluster profile check --deploy"
ON_NODE = "cluster salt -- MINION cmd.run "
LESS_MEMORY = "cluster deploy DEPLOYMENT --set gpu_memory_utilization=0.8"
ENGINE = "cluster apply engine"
_SHOW = ON_NODE + "'nvidia-smi || rocm-smi || ls -l /dev/dri'"
_KERNEL_LOG = ON_NODE + "'dmesg | grep -i -E \"xid|nvrm|amdgpu|i915|xe \" | tail'"

RULES = (
    # Memory of the card.
    Rule(
        "accelerator_memory_full",
        Rank.CAUSE,
        (
            r"(?P<api>CUDA|HIP|XPU|MPS|NPU) out of memory\. Tried to allocate (?P<more>[\d.]+ [KMGT]?i?B)\.?"
            r"(?: \(?(?:GPU|XPU) (?P<card>\d+);? (?:has a total capacity of )?(?P<total>[\d.]+ [KMGT]i?B)"
            r"(?: total capacity;.*?(?P<free1>[\d.]+ [KMGT]?i?B) free| of which (?P<free>[\d.]+ [KMGT]?i?B) is free)?)?",
            r"(?P<api>CUDA|HIP|XPU) out of memory occurred when (?P<when>warming up \w+(?: \([^)]*\))? with \d+ dummy requests)",
            r"(?P<api>CUDA|HIP|XPU|Triton) ?(?:driver )?[Ee]rror(?:[ :]+\[?CUDA\]?)?:? (?:\d+ )?(?:hip|cuda)?(?:ErrorOutOfMemory|out of memory)",
            r"(?P<api>UR_RESULT_ERROR|ZE_RESULT_ERROR)_OUT_OF_(?:DEVICE|HOST)_MEMORY",
            r"level_zero backend failed with error: (?:39|40)\b.*?(?P<api>UR|ZE)_RESULT_ERROR_OUT_OF",
            r"Native API (?:failed|returns).*?(?P<api>UR|PI|ZE)_(?:RESULT_)?ERROR_OUT_OF_(?:DEVICE_MEMORY|HOST_MEMORY|RESOURCES)",
            r"(?P<api>UR|PI|ZE)_(?:RESULT_)?ERROR_OUT_OF_RESOURCES",
            r"(?P<api>CUBLAS|CUDNN|HIPBLAS|CUSOLVER)_STATUS_ALLOC_FAILED",
            r"(?:(?:Callback: )?Queue \w+? ?aborting with error ?: )?(?P<api>HSA)_STATUS_ERROR_OUT_OF_RESOURCES",
            r"(?P<api>CUDA|HIP) Error: out of memory",
        ),
        "the accelerator ran out of memory[ while {when}][: {more} more were asked for][, {free} of {total} were free]"
        "[, {free1} of {total} were free][ (card {card})]: weights, KV cache and what a step works in are more than the card "
        "has beside what other programs hold; fewer sequences or a smaller share leave room: {text}",
        (LESS_MEMORY,),
    ),
    Rule(
        "accelerator_memory_full",
        Rank.CAUSE,
        (r"(?!Task was killed)",),
        "the accelerator ran out of memory: {text}; fewer sequences or a smaller share leave room",
        (LESS_MEMORY,),
        "exception",
        "OutOfMemoryError",
    ),
    # Faults of the card or of what runs on it.
    Rule(
        "accelerator_memory_fault",
        Rank.CAUSE,
        (
            r"Memory access fault by (?P<card>GPU node-\d+)(?: \(Agent handle: \w+\))? on address (?P<address>0x[0-9a-f]+|\(nil\))\. "
            r"Reason: (?P<why>[^.\n]+)",
            r"(?P<card>GPU node-\d+).*?[Mm]emory access fault",
            r"Memory critical error by (?P<card>agent node-\d+)(?: \(Agent handle: \w+\))? on address "
            r"(?P<address>0x[0-9a-f]+|\(nil\))\. Reason: (?P<why>[^.\n]+)",
            r"amdgpu \S+: (?:amdgpu: )?\[(?P<card>\w*hub\d*)\] (?:no-retry |retry )?page fault(?P<why>[^\n]*)",
            r"Segmentation fault from (?P<card>GPU) at (?P<address>0x[0-9a-f]+)(?:.*?type: \d+ \((?P<why>\w+)\))?",
        ),
        "{card} had a memory access fault[ at {address}][: {why}]: a kernel touched memory that is not mapped; the engine's "
        "kernels and the driver do not fit this card, or one of them is faulty",
        (_KERNEL_LOG,),
    ),
    Rule(
        "accelerator_access_fault",
        Rank.CAUSE,
        (
            r"(?:CUDA|HIP) (?:error|failure|Exception):? '?(?:an )?(?P<why>illegal memory access(?: was encountered)?|misaligned address|"
            r"invalid program counter)",
            r"(?P<why>hipErrorIllegalAddress|cudaErrorIllegalAddress)",
        ),
        "the card had a memory access fault: {why}; a kernel touched memory that is not its own: CUDA_LAUNCH_BLOCKING=1 "
        "(AMD_SERIALIZE_KERNEL=3) in the environment names which, without graphs first",
        ("cluster deploy DEPLOYMENT --set enforce_eager=true",),
    ),
    Rule(
        "accelerator_lost",
        Rank.CAUSE,
        (
            r"(?P<why>(?:UR|PI|ZE)_(?:RESULT_)?ERROR_DEVICE_LOST)",
            r"(?P<why>level_zero backend failed with error: (?:20|2147483646)\b[^\n]*)",
            r"(?:CUDA|HIP) error: (?P<why>(?:uncorrectable ECC error|unspecified launch failure|the launch timed out|"
            r"hardware stack error)[^\n]*)",
            r"(?P<why>GPU (?:is lost|has fallen off the bus)[^\n]*)",
            r"(?P<why>NVML_ERROR_GPU_IS_LOST|GPU is lost|HSA_STATUS_ERROR_EXCEPTION[^\n]*|(?:Callback: )?Queue 0x\w+? ?aborting with error ?: [^\n]*)",
            r"(?P<why>GPU [Hh]ang[^\n]*)",
            r"HSA exception: (?P<why>[^\n]*)",
            r"HW Exception by (?P<why>GPU node-\d+[^\n]*)",
            r"amdgpu \S+: (?:amdgpu: )?(?P<why>(?:ring \S+ timeout|GPU reset begin|\S+ queue reset failed|GPU recovery disabled|"
            r"MODE\d reset)[^\n]*)",
            r"(?:xe|i915) \S+: (?:\[drm\] )?(?:\*ERROR\* )?(?P<why>(?:GPU HANG|Engine reset|GT\d: (?:GuC |Engine |reset)[^\n]*|"
            r"Timedout job)[^\n]*)",
            r"NVRM: (?P<why>Xid [^\n]*)",
        ),
        "the card stopped working: {why}; a reset by the driver, an error of its memory, power or heat: the kernel's "
        "log says which",
        (_KERNEL_LOG,),
    ),
    Rule(
        "accelerator_busy",
        Rank.CAUSE,
        (r"(?:CUDA|HIP) error: (?:CUDA-capable )?device\(?s?\)? (?:is|is/are|are) busy or unavailable",),
        "another program has the card to itself: end it, or let several use the card (its compute mode)",
        (_SHOW,),
        "exception",
    ),
    Rule(
        "accelerator_assertion",
        Rank.CAUSE,
        (r"(?:CUDA|HIP) error: device-side assert triggered",),
        "a kernel found a value that cannot be (device-side assert), such as a token beyond the vocabulary; the lines before "
        "name the assertion",
        (LOG,),
        "exception",
    ),
    # The build does not fit the card.
    Rule(
        "kernels_for_other_card",
        Rank.CAUSE,
        (
            r"(?:CUDA|HIP) error: (?P<why>no kernel image is available for execution on the device|invalid device function|"
            r"shared object initialization failed|named symbol not found|device kernel image is invalid)",
            r"(?P<why>no kernel image is available[^\n]*|hipErrorNoBinaryForGpu[^\n]*|HSA_STATUS_ERROR_INVALID_ISA[^\n]*)",
            r"rocBLAS error: (?P<why>Cannot read [^\n]*TensileLibrary[^\n]*)",
            r"(?P<why>\S+ is not a recognized processor for this target)",
            r"(?P<why>Found [^\n]*? which is too old to be supported by the triton GPU compiler)",
            r"(?P<why>type fp8\w+ not supported in this architecture)",
            r"(?P<why>FlashAttention (?:is not supported on this GPU|only supports)[^\n]*)",
            r"(?P<why>Unsupported FA version[^\n]*)",
            r"(?P<why>NVIDIA \S.*? with CUDA capability sm_\d+ is not compatible with the current PyTorch installation)",
        ),
        "the engine has no kernels for this card: {why}; it was built for other models of card",
        (ENGINE,),
    ),
    Rule(
        "no_double_precision",
        Rank.CAUSE,
        (
            r"(?P<why>Double type is not supported on this platform)",
            r"(?P<why>Required aspect fp64 is not supported on the device[^\n]*)",
            r"(?P<why>[^\n]*\bfp64\b[^\n]*not supported[^\n]*)",
        ),
        "a kernel needs double precision, which this card lacks: {why}; the driver can emulate it: OverrideDefaultFP64Settings=1 "
        "and IGC_EnableDPEmulation=1 in the environment of the accelerator's entry in the engine map",
        ("cluster apply",),
    ),
    Rule(
        "kernels_for_other_card",
        Rank.CAUSE,
        (
            r"(?P<why>Only (?:XE2|Xe2|BMG|PVC|\w+ GPUs?)[^\n]*?(?:is|are) supported[^\n]*)",
            r"(?P<why>(?:Xe2|XE2|Xe-HPG|BMG|PVC)[^\n]*? (?:is not supported|are not supported|required|only)[^\n]*)",
            r"(?P<why>[^\n]*?(?:only supports?|requires?) (?:XE2|Xe2|BMG|PVC|Hopper|Blackwell|Ampere|sm_?\d+|SM\d+|gfx\w+)[^\n]*)",
            r"(?P<why>No compiled code for this device[^\n]*|The program was built for \d+ devices?[^\n]*)",
        ),
        "the engine has no kernels for this card: {why}; it was built for other models of card",
        (ENGINE,),
        "exception",
    ),
    Rule(
        "number_format_unsupported",
        Rank.CAUSE,
        (
            r"Bfloat16 is only supported on GPUs with compute capability of at least (?P<needed>[\d.]+)\. Your (?P<card>.*?) GPU "
            r"(?P<has>[^.]*(?:\.\d)?)",
            r"(?P<card>Intel Arc A770) have bfloat16 accuracy known issue",
            r"(?P<card>[^\n.]*?) does(?: not|n't) support bfloat16",
        ),
        "{card} cannot do bfloat16[ (compute capability {needed} is needed)]: {text}; with 16-bit floats of the other kind it can",
        ('cluster deploy DEPLOYMENT --set extra_arguments=\'["--dtype", "half"]\'',),
    ),
    # The driver.
    Rule(
        "driver_too_old",
        Rank.CAUSE,
        (
            r"The NVIDIA driver on your system is too old \(found version (?P<found>\d+)\)",
            r"CUDA driver version is insufficient for CUDA runtime version",
            r"the provided PTX was compiled with an unsupported toolchain",
            r"forward compatibility was attempted on non supported HW",
            r"(?:Error 803: )?system has unsupported display driver ?/ ?cuda driver combination",
            r"cudaErrorInsufficientDriver",
        ),
        "the card's driver is too old for the engine[ (it does CUDA {found})]: {text}; install a newer driver, or an engine "
        "that was built for this one",
        (ON_NODE + "nvidia-smi",),
        "exception",
    ),
    Rule(
        "driver_not_ready",
        Rank.CAUSE,
        (
            r"(?:Error 802: )?system not yet initialized",
            r"CUDA unknown error",
            r"(?:Driver/library version mismatch)",
            r"ZE_RESULT_ERROR_(?:UNINITIALIZED|DEPENDENCY_UNAVAILABLE)",
            r"initialization error",
        ),
        "the card's driver does not answer: {text}; the kernel's module and the libraries are of different versions, or a "
        "service of the driver (nvidia-fabricmanager) does not run",
        (_SHOW,),
        "exception",
    ),
    Rule(
        "no_accelerator",
        Rank.CAUSE,
        (
            r"No (?P<kind>CUDA|HIP|XPU) (?:GPUs|devices) are available",
            r"no (?P<kind>CUDA|ROCm)-capable device is detected",
            r"Found no (?P<kind>NVIDIA) driver on your system",
            r"(?P<kind>XPU) device count is zero",
            r"Failed to infer device type",
            r"(?P<kind>CUDA|HIP) driver initialization failed, you might not have",
            r"(?:PI|UR)_(?:RESULT_)?ERROR_DEVICE_NOT_FOUND",
            r"No device of requested type available",
            r"0 active drivers \(\[\]\)",
            r"(?P<kind>NVML)(?: Shared Library Not Found|_ERROR_(?:LIBRARY_NOT_FOUND|DRIVER_NOT_LOADED)| library not found)",
            r"Device string must not be empty",
            r"[Nn]o (?:supported )?(?:GPU|XPU|NPU|accelerator|device)s? (?:was |were |are )?(?:found|detected|available)",
            r"(?P<kind>ROCm|amdsmi|amdgpu)[^\n]*?(?:not loaded|not found|no (?:GPU|device)s?)",
            r"hipErrorNoDevice",
            r"(?:Error code:\s*)?(?:\d+ \| )?(?P<kind>AMDSMI)_STATUS_(?:DRIVER_NOT_LOADED|NOT_FOUND|INIT_ERROR|NO_DATA)",
        ),
        "no accelerator was found[ ({kind})]: {text}; the driver is not loaded, the device was not given to the worker, or the "
        "engine is the build for another accelerator",
        (_SHOW,),
        "exception",
    ),
    Rule(
        "card_number_wrong",
        Rank.CAUSE,
        (
            r"(?:CUDA|HIP) error: invalid device ordinal",
            r"(?:DP adjusted )?local[_ ]rank \(?(?P<rank>\d+)\)? is out of bounds(?: for (?P<cards>\d+) devices)?",
            r"Invalid device index (?P<rank>\d+), must be in range \[0, (?P<cards>\d+)\)",
            r"device index.*?out of range",
            r"World size \((?P<ranks>\d+)\) is larger than the number of available GPUs \((?P<cards>\d+)\)",
            r"[Tt]ensor[_ ]parallel[_ ]size \(?(?P<ranks>\d+)\)? (?:cannot be|is) larger than the number of available GPUs \(?(?P<cards>\d+)",
            r"device_id \d+ is out of range",
            r"The number of required (?:GPU|XPU|device)s exceeds the total number of available",
        ),
        "a rank asked for a card that the node does not have[: {ranks} ranks][: rank {rank}][, {cards} cards]: {text}",
        (FIT,),
    ),
    Rule(
        "engine_for_other_accelerator",
        Rank.CAUSE,
        (
            r"Torch not compiled with (?P<kind>CUDA|XPU|ROCm|HIP|\w+) (?:enabled|support)",
            r"PyTorch (?:was )?not compiled with (?P<kind>\w+)",
            r"torch was not compiled with (?P<kind>\w+)",
            r"Attempting to deserialize object on a (?P<kind>CUDA|XPU) device but",
            r"Could not run '(?P<operator>[\w:.]+)' with arguments from the '(?P<kind>\w+)' backend",
            r"'?_OpNamespace'? '(?P<operator>\w+)' object has no attribute '(?P<kind>\w+)'",
        ),
        "the engine's torch or its kernels were not built for this accelerator ({kind}): {text}",
        (ENGINE,),
        "exception",
    ),
    # Kernels.
    Rule(
        "kernel_too_large",
        Rank.CAUSE,
        (
            r"out of resource: (?P<what>[\w ]+), Required: (?P<needed>\d+), Hardware limit: (?P<limit>\d+)",
            r"too many resources requested for launch",
        ),
        "a kernel needs more of the card than it has[: {what}, {needed} of at most {limit}]: {text}",
        ('cluster deploy DEPLOYMENT --set extra_arguments=\'["--attention-backend", "TRITON_ATTN"]\'',),
        "exception",
    ),
    Rule(
        "accelerator_error",
        Rank.SYMPTOM,
        (
            r"(?P<api>CUDA|HIP|XPU) (?:error|driver error): (?P<why>[^\n]+)",
            r"level_zero backend failed with error: (?P<why>[^\n]+)",
            r"Failed: (?P<api>CUDA|HIP) error \S+ '(?P<why>[^']*)'",
            r"(?P<api>CUBLAS|CUDNN|HIPBLAS|MIOPEN|NVRTC)(?: error|_STATUS_\w+)[:=]? ?(?P<why>[^\n]*)",
            r"(?P<why>UR_RESULT_ERROR_\w+[^\n]*)",
        ),
        "the card's library gave an error[ ({api})]: {why}",
        (_KERNEL_LOG,),
        "exception",
    ),
)
