"""
Read what an engine reports of a checkpoint that it cannot serve: its kind, tokenizer, weights, their number format. Rules as data.
"""

from failure_reasons import Rank, Rule

LOG = "cluster logs NODE -n 200"
SET = "cluster deploy DEPLOYMENT --set "

RULES = (
    Rule(
        "no_architecture",
        Rank.CAUSE,
        (
            r"No model architectures are specified",
            r"No model architecture(?:s)? (?:was|were) (?:found|given)",
            r"Unrecognized model in (?P<where>\S+)\. Should have a `model_type` key",
        ),
        "No model architectures are specified[ in {where}]: the checkpoint's config.json does not name what it is (`architectures`, `model_type`); the folder "
        "holds no complete checkpoint, or an adapter alone",
        ("cluster apply model", LOG),
    ),
    Rule(
        "architecture_unknown",
        Rank.CAUSE,
        (
            r"Model architectures? (?P<what>\[[^\]]*\]|\S+) (?:is|are) not supported(?: by (?P<where>\w+))?(?: for now)?",
            r"The checkpoint you are trying to load has model type `?(?P<what>[\w-]+)`? but Transformers does not recognize",
            r"(?P<what>\S+) has no vLLM implementation and the Transformers implementation is not compatible",
            r"GGUF model with architecture (?P<what>[\w-]+) is not supported",
            r"Cannot find model module\.? '?(?P<what>\w+)'?",
            r"(?:Model architecture|The model type) '?(?P<what>[\w.]+)'? (?:is|was) not (?:recognized|found|registered)",
        ),
        "this version of vLLM does not know the model's kind {what}: a newer one may, and some need their own code "
        "(--trust-remote-code)",
        ("cluster profile check",),
    ),
    Rule(
        "architecture_not_read",
        Rank.SYMPTOM,
        (r"Model architectures? (?P<what>\[[^\]]*\]) failed to be inspected",),
        "vLLM could not load its own code for {what}: an import in it failed, the lines before say which",
        (LOG,),
    ),
    Rule(
        "remote_code",
        Rank.CAUSE,
        (
            r"(?:Loading |The repository (?:for )?)?(?P<model>\S+)? ?(?:requires you to execute|contains custom code which must be executed)",
            r"Please pass the argument `trust_remote_code=True`",
            r"Failed to load the model config\. If the model is a custom model",
            r"set(?:ting)? (?:the option )?`trust_remote_code=True`",
        ),
        "the model[ {model}] brings code of its own, which vLLM runs only when told to: if you trust it, add --trust-remote-code to "
        "the deployment's extra_arguments",
        (SET + "extra_arguments='[\"--trust-remote-code\"]'",),
    ),
    Rule(
        "tokenizer_unreadable",
        Rank.CAUSE,
        (
            r"Failed to load the tokenizer",
            r"Can't load tokenizer for '(?P<model>[^']+)'",
            r"Tokenizer class (?P<what>\w+) does not exist or is not currently imported",
            r"Couldn't instantiate the backend tokenizer",
            r"data did not match any variant of untagged enum (?P<what>\w+)",
            r"(?P<what>\w+Tokenizer\w*) requires the (?P<package>\w+) library",
            r"Error parsing (?:line|tokenizer)[^\n]*tokenizer",
            r"expected value at line \d+ column \d+",
            r"'(?P<what>\w*Tokenizer\w*)' object has no attribute '\w+'",
            r"(?:Unable|Failed) to load (?:the )?(?:vocabulary|tokenizer) from (?:file|\S+)[^\n]*",
            r"Converting from (?:SentencePiece|Tiktoken) and SentencePiece|(?:Error )?[Uu]nable to parse tiktoken",
            r"not a string$",
        ),
        "the model's tokenizer cannot be loaded[ ({what})][, {package} is missing]: {text}; its files are missing or damaged, or made "
        "by a newer library than the engine's",
        ("cluster apply model",),
    ),
    Rule(
        "config_unreadable",
        Rank.CAUSE,
        (
            r"It looks like the config file at '(?P<where>[^']+)' is not a valid JSON file",
            r"Can't load the configuration of '(?P<where>[^']+)'",
            r"Can't load (?:image processor|feature extractor|processor|video processor) for '(?P<where>[^']+)'",
            r"Unrecognized (?:image |video )?processor in (?P<where>\S+)",
        ),
        "a JSON file of the checkpoint at {where} is missing or damaged: {text}; fetch the checkpoint again",
        ("cluster apply model",),
    ),
    Rule(
        "config_unreadable",
        Rank.CAUSE,
        (r"(?:Expecting|Extra data|Invalid|Unterminated|Illegal)[^\n]*: line \d+ column \d+ \(char \d+\)",),
        "a JSON file of the checkpoint (config.json, generation_config.json, the tokenizer's) is empty or damaged: {text}; fetch it again",
        ("cluster apply model",),
        "exception",
        "JSONDecodeError",
    ),
    Rule(
        "config_incomplete",
        Rank.CAUSE,
        (
            r"'?(?P<kind>\w+Config)'? object has no attribute '(?P<what>\w+)'",
            r"(?P<kind>\w+Config)\.__init__\(\) (?:missing|got)[^\n]*'(?P<what>\w+)'",
            r"`?(?P<what>rope_(?:scaling|parameters))`?(?:'s|\['\w+'\])?[^\n]*(?:must|should|missing|requires)[^\n]*",
            r"Unknown RoPE scaling type (?P<what>\S+)",
        ),
        "the model's config.json and the engine do not fit each other ({what}): {text}; the file is of another version of the model, "
        "or the engine's transformers is older or newer than it wants",
        ("cluster apply engine",),
        "exception",
    ),
    Rule(
        "weights_missing",
        Rank.CAUSE,
        (
            r"Cannot find any (?:safetensors )?model weights with `(?P<where>[^`]+)`",
            r"(?:Error no file named|no file named) (?P<what>[\w.,* ]+) found in directory (?P<where>\S+?)\.?(?:\s|$)",
            r"Could not find checkpoint files '(?P<where>[^']+)'",
            r"\[Errno 2\] No such file or directory: '(?P<where>[^']*\.(?:safetensors|bin|pt|gguf|json|model))'",
            r"No such file or directory: \"(?P<where>[^\"]*\.safetensors)\"",
        ),
        "the checkpoint is not complete: there are no weights at {where}",
        ("cluster apply model",),
    ),
    Rule(
        "weights_damaged",
        Rank.CAUSE,
        (
            r"Error while deserializing header: (?P<why>\S[^\n]*)",
            r"(?P<why>(?:HeaderTooLarge|HeaderTooSmall|InvalidHeader\w*|MetadataIncompleteBuffer|incomplete metadata|invalid load key)[^\n]*)",
            r"(?P<why>(?:PytorchStreamReader failed|unexpected EOF, expected \d+ more bytes)[^\n]*)",
            r"(?P<why>Unable to load weights from (?:pytorch )?checkpoint file[^\n]*)",
        ),
        "a file of the checkpoint is damaged or cut off ({why}): a download that broke off, or a pointer file of git-lfs in the "
        "place of the weights; remove the checkpoint's folder and fetch it again",
        ("cluster apply model",),
    ),
    Rule(
        "weights_do_not_fit_model",
        Rank.CAUSE,
        (
            r"Following weights were not initialized from checkpoint: (?P<what>\{[^}]{0,200})",
            r"There is no module or parameter named '?(?P<what>[\w.]+)'? in (?P<model>\w+)",
            r"Attempted to load weight \((?P<what>[^)]*\))\) into parameter \((?P<model>[^)]*\))",
            r"Tried to load weights of size (?P<what>\S+) to a parameter of size (?P<model>\S+)",
            r"'(?P<what>(?:model\.|language_model\.|transformer\.)?layers\.\d+\.[\w.]+)'$",
            r"Parameter (?P<what>\S+) not found in (?P<model>\w+)",
            r"(?P<what>The size of tensor a \(\d+\) must match the size of tensor b \(\d+\)[^\n]*)",
            r"(?P<what>start \(\d+\) \+ length \(\d+\) exceeds dimension size \(\d+\))",
        ),
        "the checkpoint's weights are not those of the model that its config.json describes[: {what}]: a checkpoint in another form "
        "(quantized otherwise, an adapter), or one that this version of vLLM does not read",
        (LOG,),
        "exception",
    ),
    Rule(
        "quantization_differs",
        Rank.CAUSE,
        (
            r"Quantization method specified in the model config \((?P<model>\S+)\) does not match the quantization method specified "
            r"in the `quantization` argument \((?P<asked>\S+)\)",
        ),
        "the checkpoint is quantized as {model}, the deployment asks for {asked}: leave --quantization out",
        ("cluster profile check",),
    ),
    Rule(
        "quantization_unsupported",
        Rank.CAUSE,
        (
            r"Unknown quantization method: (?P<method>[\w-]+)",
            r"(?P<method>[\w-]+) quantization is currently not supported (?:in|for|on) (?P<where>[\w-]+)",
            r"The quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum capability: (?P<needed>\d+)\. "
            r"Current capability: (?P<has>[^.\n]+)",
            r"(?P<dtype>[\w.]+) is not supported for quantization method (?P<method>[\w-]+)\. Supported dtypes: (?P<dtypes>\[[^\]]*\])",
            r"(?P<method>(?:AWQ|GPTQ|FP8|INT8|NVFP4|MXFP4|Marlin|bitsandbytes)\w*) is only supported (?:on|by|for) (?P<why>[^\n]*)",
            r"(?P<why>Failed to find a kernel that can implement the .{0,300})",
            r"(?P<why>No (?:valid )?(?P<method>\w+) (?:\w+ )?(?:MoE|linear|GEMM) (?:backend|kernel)[^\n]*)",
            r"(?P<method>[\w-]+) (?:is|are) not supported on (?:this platform|(?P<where>CPU|XPU|ROCm|HIP))",
        ),
        "vLLM cannot run weights quantized this way on this accelerator[: {method}][ ({where})][, capability {needed} is needed and "
        "{has} is there][, {dtype} activations; it takes {dtypes}][: {why}]; choose a checkpoint in another form",
        ("cluster profile check",),
        "exception",
    ),
    Rule(
        "attention_unsupported",
        Rank.CAUSE,
        (
            r"Head size (?P<size>\d+) is not supported by (?P<what>\w+)(?:\. Supported head sizes are:? (?P<sizes>\[[^\]]*\]))?",
            r"(?:Unsupported|Invalid) head(?:_| )size:? ?(?P<size>\d+)",
            r"head_size (?:\(?(?P<size>\d+)\)? )?(?:is )?not supported",
            r"This flash attention build (?:only supports|does not support) (?P<what>head(?:dim| dim| size)[^\n]*)",
            r"No valid (?:MLA prefill |MLA )?attention backend found for (?P<where>\S+) with [^\n]*?Reasons: (?P<why>[^\n]*)",
            r"No valid (?:MLA prefill |attention )?backend found[^\n]*Reasons: (?P<why>[^\n]*)",
            r"Selected backend (?P<what>\S+) is not valid for this configuration\. Reason: (?P<why>[^\n]*)",
            r"Invalid attention backend for (?P<where>[\w-]+)(?P<why>[^\n]*)",
            r"(?P<what>\w+) (?:backend )?does not support (?:block size|head size|MLA|sliding window|attention sinks?|fp8)(?P<why>[^\n]*)",
        ),
        "no attention kernel does this model on this accelerator[ ({where})][: head size {size}][, {what}][, it takes {sizes}][: {why}]; "
        "another backend may (--attention-backend in the deployment's extra_arguments)",
        (SET + 'extra_arguments=\'["--attention-backend", "TRITON_ATTN"]\'',),
        "exception",
    ),
)
