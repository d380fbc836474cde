"""
Read what vLLM's own code reports when it cannot start or go on, in the wordings of 0.24 to 0.33. Rules as data.

Another engine brings a file like this one, with its own rules before those that it shares.
"""

from accelerator_failures import RULES as ACCELERATOR_RULES
from collective_failures import RULES as COLLECTIVE_RULES
from failure_reasons import Rank, Rule, Rules
from hub_failures import RULES as HUB_RULES
from model_failures import RULES as MODEL_RULES
from process_failures import RULES as PROCESS_RULES

LOG = "cluster logs NODE -n 200"
FIT = "cluster profile check --deploy"
ON_NODE = "cluster salt -- MINION cmd.run "
SET = "cluster deploy DEPLOYMENT --set "
_GIB = r"[\d.]+ ?G(?:i?B)?"
_SIZES = r"\(?(?P<free>[\d.]+) ?(?:GiB)?/(?P<total>[\d.]+) ?GiB\)?"

MEMORY = (
    Rule(
        "kv_cache_too_small",
        Rank.CAUSE,
        (
            r"To serve at least one request with the model(?:'?s|s's)?'?s? max(?:imum)? seq(?:uence)? len(?:gth)? \((?P<tokens>\d+)\), "
            rf"\(?(?P<needed>{_GIB}) KV cache is needed, which is larger than the available KV cache memory \((?P<free>{_GIB})\)"
            r"(?:.*?estimated maximum model length is (?P<fits>\d+))?",
            r"The model's max seq len \((?P<tokens>\d+)\) is larger than the maximum number of tokens that can be stored in KV "
            r"cache \((?P<fits>\d+)\)",
        ),
        "the KV cache does not fit[: {needed} are needed for {tokens} tokens, {free} are free][; {fits} tokens of {tokens} would "
        "fit]; allow shorter sequences (max_model_len), or a larger share of the memory (gpu_memory_utilization)",
        (SET + "max_model_len={fits}", FIT),
    ),
    Rule(
        "kv_cache_no_memory",
        Rank.CAUSE,
        (
            r"No available memory for the cache blocks",
            r"Cannot auto-fit max_model_len: not enough GPU memory",
            r"Insufficient (?:GPU )?memory for (?:the )?KV[ -]?cache",
        ),
        "the KV cache does not fit: the weights and what a step works in take all memory that vLLM may use, nothing is left for "
        "the cache; give it a larger share (gpu_memory_utilization, or kv_cache_memory where that is set), more ranks, or weights in fewer bits",
        (SET + "gpu_memory_utilization=0.95", FIT),
    ),
    Rule(
        "state_cache_too_small",
        Rank.CAUSE,
        (r"max_num_seqs \((?P<sequences>\d+)\) exceeds (?:the )?available Mamba cache blocks \((?P<fits>\d+)\)",),
        "the cache does not fit: {sequences} sequences at a time, {fits} states have room",
        (SET + "max_num_seqs={fits}", FIT),
    ),
    Rule(
        "memory_taken",
        Rank.CAUSE,
        (
            rf"(?:Free|Available) memory on (?:device|node) (?:(?P<device>[\w:]+) )?{_SIZES} on startup is less than desired \w+ memory "
            r"utilization \((?P<share>[\d.]+), (?P<wanted>[\d.]+) ?GiB\)",
        ),
        "other programs hold the memory that vLLM is to use[ (device {device})]: {free} of {total} GiB are free, {wanted} GiB are "
        "asked for (gpu_memory_utilization {share}); end what uses the card or ask for a smaller share",
        (ON_NODE + "'nvidia-smi || rocm-smi || free -g'",),
    ),
    Rule(
        "cache_memory_taken",
        Rank.CAUSE,
        (
            rf"Available memory on node (?P<device>\S+) {_SIZES} on kv cache allocation is less than requested memory for kv "
            r"\((?P<wanted>[\d.]+)",
        ),
        "the KV cache does not fit: {free} of {total} GiB are free on memory node {device}, {wanted} GiB are asked for; ask for a "
        "smaller cache (kv_cache_memory) or end what uses the memory",
        (SET + "kv_cache_memory='1 GiB'",),
    ),
    Rule(
        "memory_changed",
        Rank.CAUSE,
        (
            r"Error in memory profiling\. Initial free memory (?P<before>[\d.]+)(?: GiB)?, current free memory (?P<after>[\d.]+)",
        ),
        "another program gave memory of the card back while vLLM measured how much is free: {before} before, {after} after; start "
        "again when it is still",
        ("cluster deploy DEPLOYMENT",),
    ),
    Rule(
        "sampler_memory_full",
        Rank.CAUSE,
        (
            r"(?:CUDA|HIP|XPU) out of memory occurred when warming up (?P<what>\w+)(?: \([^)]*\))? with (?P<sequences>\d+) dummy",
        ),
        "the accelerator ran out of memory when warming up the {what} with {sequences} requests: fewer sequences at a time, or a "
        "smaller share for the KV cache, leave room",
        (SET + "max_num_seqs=64",),
    ),
)

SETTINGS = (
    Rule(
        "length_beyond_model",
        Rank.CAUSE,
        (
            r"User-specified max_model_len \((?P<tokens>\d+)\) is greater than the derived max_model_len "
            r"\((?:\w+=)?(?P<most>\d+)",
        ),
        "max_model_len is {tokens}, more than the model was made for ({most})",
        (SET + "max_model_len={most}",),
    ),
    Rule(
        "batch_too_small",
        Rank.CAUSE,
        (
            r"max_num_batched_tokens \((?P<tokens>\d+)\) (?:is smaller than max_model_len|must be greater than or equal to max_num_seqs) "
            r"?\((?P<least>\d+)\)",
            r"Chunked MM input disabled but max_tokens_per_mm_item \((?P<least>\d+)\) is larger than max_num_batched_tokens "
            r"\((?P<tokens>\d+)\)",
        ),
        "max_num_batched_tokens is {tokens}, less than one pass needs ({least})",
        (SET + "max_num_batched_tokens={least}",),
    ),
    Rule(
        "heads_not_divisible",
        Rank.CAUSE,
        (
            r"Total number of attention heads \((?P<what>\d+)\) must be divisible by tensor parallel size \((?P<by>\d+)\)",
            r"(?P<what>\d+) is not divisible by (?P<by>\d+)",
            r"(?P<what>[\w ]+(?:heads|size|dim)\w*)(?: \(?\d+\)?)? (?:must be|is not) divisible by (?:the )?(?:tensor[ _]parallel(?:ism)?[ _]size|tp_size|"
            r"tensor parallel world size)(?: \(?(?P<by>\d+)\)?)?",
        ),
        "the model cannot be split over this many ranks: {what} is not divisible[ by {by}]; choose another tensor_parallel for the "
        "deployment",
        (FIT,),
    ),
    Rule(
        "quantization_not_splittable",
        Rank.CAUSE,
        (
            r"The input size is not aligned with the quantized weight shape",
            r"The output size is not aligned with the quantized weight shape",
            r"(?P<what>(?:The )?(?:output_size|input_size|Weight (?:in|out)put_size_per_partition)[^\n]*?is not divisible by[^\n]*?)"
            r"(?:\. Consider[^\n]*)?$",
        ),
        "the quantized weights cannot be split over this many ranks: [{what}: ]a group of the quantization would be cut; choose a "
        "smaller tensor_parallel, or split by layers (pipeline_parallel)",
        (FIT,),
    ),
    Rule(
        "pipeline_not_supported",
        Rank.CAUSE,
        (
            r"Pipeline parallelism is not supported for this model",
            r"(?P<what>\S+) does not support pipeline parallelism",
        ),
        "vLLM cannot split this model by layers[ ({what})]: use tensor_parallel in the deployment",
        (FIT,),
    ),
    Rule(
        "layers_not_splittable",
        Rank.CAUSE,
        (
            r"(?:Invalid partition string|len\(partitions\)=(?P<parts>\d+) does not match pp_size=(?P<stages>\d+)|"
            r"sum\(partitions\)=(?P<sum>\d+) does not match num_hidden_layers=(?P<layers>\d+))",
        ),
        "the split of layers does not fit (VLLM_PP_LAYER_PARTITION): {text}",
        (FIT,),
    ),
    Rule(
        "settings_refused",
        Rank.CAUSE,
        (
            r"(?:[\w./-]+(?: \w+)?: )?error: (?P<why>(?:unrecognized arguments|argument|the following arguments|invalid)[^\n]*)",
            r"unrecognized arguments:(?P<why>[^\n]*)",
        ),
        "error: {why}; this version of vLLM does not take what the deployment gives it (extra_arguments, or the engine map)",
        ("cluster profile check",),
    ),
)

RUNNING = (
    Rule(
        "process_start_method",
        Rank.CAUSE,
        (r"Cannot re-initialize (?P<kind>CUDA|XPU|HIP) in forked subprocess",),
        "{kind} was touched before vLLM started its workers, which then cannot use it: VLLM_WORKER_MULTIPROC_METHOD=spawn in the environment of the accelerator's entry in the engine map",
        ("cluster apply",),
        "exception",
    ),
    Rule(
        "step_timeout",
        Rank.SYMPTOM,
        (
            r"RPC call to (?P<call>\w+) timed out",
            r"(?P<call>execute_model|sample_tokens) (?:RPC )?timed out",
            r"Timed out waiting for (?P<call>worker|model execution)[^\n]*",
        ),
        "one step took longer than its limit ({call}; VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS, 300 s if not set): a rank hangs, or the node "
        "is too slow for a step of this size; fewer tokens a step, or a longer limit in the environment of the accelerator's entry in "
        "the engine map",
        (SET + "max_num_batched_tokens=512",),
        "exception",
    ),
    Rule(
        "start_timeout",
        Rank.PEER,
        (
            r"Timed out waiting for (?:new )?engine core processes to start\.(?:.*?Waited (?P<seconds>\d+)s)?",
            r"Did not receive response from front-end process within (?P<minutes>\d+) minutes",
            r"Timed out waiting for engines to send",
            r"Timeout waiting for (?:local |remote )?engine",
            r"Timed out waiting for (?P<what>\w+) to (?:start|be ready)",
            r"DP Coordinator process failed to report ZMQ addresses within timeout=(?P<seconds>\d+)",
        ),
        "a process of the engine did not come up[ within {seconds:seconds}][ within {minutes} minutes]: loading is slow, or another "
        "process failed (VLLM_ENGINE_READY_TIMEOUT_S sets the limit)",
        (LOG,),
        "exception",
    ),
    Rule(
        "model_makes_no_numbers",
        Rank.CAUSE,
        (r"NaNs detected in logits", r"probability tensor contains either `inf`, `nan` or element < 0"),
        "the model computes no numbers (NaN): weights that are damaged or in a number format that overflows on this accelerator: {text}",
        (LOG,),
        "exception",
    ),
)

# After the rules of everything below vLLM: these quote it.
LAST = (
    Rule(
        "compile_failed",
        Rank.SYMPTOM,
        (
            r"(?:Ninja build failed|Error building extension|Error compiling objects)[^\n]*",
            r"(?:PassManager::run failed|ptxas[^\n]*(?:error|fatal)[^\n]*|LLVM ERROR[^\n]*)",
        ),
        "compiling the model's kernels failed: {text}; without compiling it starts, and runs slower",
        (SET + "enforce_eager=true",),
        "exception",
    ),
    Rule(
        "compile_failed",
        Rank.SYMPTOM,
        ("",),
        "compiling the model's kernels failed: {text}; without compiling it starts, and runs slower",
        (SET + "enforce_eager=true",),
        "exception",
        "BackendCompilerFailed|InductorError|CompilationError|TorchRuntimeError|Unsupported",
    ),
    Rule(
        "wrapper",
        Rank.WRAPPER,
        (
            r"Engine core initialization failed",
            r"WorkerProc initialization failed",
            r"EngineCore encountered an issue",
            r"Engine (?:process|loop) (?:failed|is not running|has died)",
            r"Engine (?:core )?(?:proc|process) \S+ (?:failed|died)",
            r"Executor failed",
            r"Ray workers have not started",
            r"DP Coordinator process failed",
            r"cancelled$",
            r"Background loop (?:has errored|is (?:stopped|not running))",
            r"Exception in worker \S+ while processing method",
            r"ZMQ|Socket operation on non-socket|Context was terminated",
            r"\A\Z",
            r"Worker failed\b",
        ),
        "{type}: {text}",
        (LOG,),
        "exception",
        r"RuntimeError|Exception|EngineDeadError|EngineGenerateError|AsyncEngineDeadError|MQEngineDeadError|SystemExit|KeyboardInterrupt|"
        r"CancelledError|ZMQError|BrokenProcessPool|EOFError|ProcessRaisedException|ChildFailedError|ActorDiedError|RayActorError",
    ),
    Rule(
        "engine_dead",
        Rank.WRAPPER,
        ("",),
        "{type}: {text}",
        (LOG,),
        "exception",
        r"EngineDeadError|AsyncEngineDeadError|MQEngineDeadError|SystemExit|KeyboardInterrupt|CancelledError|BrokenProcessPool|ActorDiedError|"
        r"RayActorError|EOFError",
    ),
)

# vLLM quotes these in messages of its own; the quoted text says better what was raised there.
WRAPPED = (
    r"Worker failed with error '(?P<text>.*?)', please check the stack trace",
    r"Worker \d+ failed to initialize: (?P<text>.*)",
    r"Exception in worker \S+ while processing method \w+: (?P<text>.*?)(?:, Traceback|$)",
)

# After these the server goes on: a request, or a part that it can do without, failed.
HANDLED = (
    r"Exception in ASGI application",
    r"Error (?:in preprocessing|in applying|with model|while|retrieving|in create|in chat|in response|in streaming|in processing) ?\w*",
    r"Exception ignored (?:in|on)",
    r"Error in (?:sys\.excepthook|calling destructor|atexit)",
    r"Failed to (?:import|load|initialize|get|read|fetch|parse|query|save|write) .*(?:usage|Triton|plugin|optional|flashinfer|deep_gemm|tilelang)",
    r"(?:Task|Future) exception was never retrieved",
    r"Failed to (?:load|import) plugin",
    r"Error executing method .*health",
    r"Exception in thread .*(?:[Uu]sage|Metrics|[Ll]og)",
    r"--- Logging error ---",
)

ALIVE = (r"(?:Engine \d+: )?Avg prompt throughput", r"Application startup complete")

ENGINE_RULES = Rules(
    (
        *MEMORY,
        *SETTINGS,
        *MODEL_RULES,
        *RUNNING,
        *COLLECTIVE_RULES,
        *ACCELERATOR_RULES,
        *HUB_RULES,
        *PROCESS_RULES,
        *LAST,
    ),
    HANDLED,
    WRAPPED,
    ALIVE,
)
