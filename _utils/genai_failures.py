"""
Read what OpenVINO GenAI and this project's server for it report when they cannot start or go on. Rules as data.
"""

from accelerator_failures import RULES as ACCELERATOR_RULES
from failure_reasons import Rank, Rule, Rules
from process_failures import RULES as PROCESS_RULES

LOG = "cluster logs NODE -n 200"
FIT = "cluster profile check --deploy"
# How the server's own lines begin.
_LINE = r"(?:\d{4}-\d\d-\d\d [\d:,]+ ERROR )?"
_ENDED = rf"{_LINE}the engine ended: (?:\w+: )?"

OWN = (
    Rule(
        "argument_refused",
        Rank.CAUSE,
        (
            rf"{_LINE}(?P<why>--[\w-]+ .*; expected .*|--[\w-]+ .*: no such file.*)",
            r"genai_server: error: (?P<why>.*)",
        ),
        "the server does not take what the deployment gives it: {why}",
        ("cluster profile check",),
    ),
    Rule(
        "program_missing",
        Rank.CAUSE,
        (r"\S*python[\d.]*: No module named (?P<module>[\w.]+)",),
        "this project's program {module} is not on the node",
        ("cluster apply engine",),
    ),
    Rule(
        "cache_too_small",
        Rank.CAUSE,
        (rf"{_LINE}the KV cache would have (?P<blocks>\d+) blocks of (?P<tokens>\d+) tokens",),
        "the KV cache is too small: {blocks} blocks of {tokens} tokens; give it more (kv_cache_memory)",
        ("cluster deploy DEPLOYMENT --set kv_cache_memory=256MiB", FIT),
    ),
    Rule(
        "model_unreadable",
        Rank.CAUSE,
        (
            rf"{_LINE}(?P<why>\S+ has no openvino_model\.xml.*|\S*config\.json: .*)",
            rf"{_LINE}(?P<why>the tokenizer of \S+ cannot be loaded: .*)",
            rf"{_ENDED}(?P<why>.*(?:Could not open file|Unable to read the model|Model file .* cannot be opened|"
            r"Unexpected end of file|Incorrect weights|tags mismatch|Empty weights).*)",
        ),
        "the model cannot be loaded: {why}",
        ("cluster apply model",),
    ),
    Rule(
        "device_missing",
        Rank.CAUSE,
        (
            rf"{_ENDED}.*Device with \"(?P<device>[\w.]+)\" name is not registered",
            rf"{_ENDED}.*Failed to create plugin .* for device (?P<device>[\w.]+)",
            rf"{_ENDED}.*\[GPU\] (?:No supported|Can't get) .*device(?P<device>)",
        ),
        "OpenVINO does not see the device[ {device}]: its driver or the card's compute runtime is missing on this node",
        ("cluster doctor", LOG),
    ),
    Rule(
        "memory_short",
        Rank.CAUSE,
        (
            rf"{_ENDED}.*(?:bad_alloc|[Nn]ot enough memory|CL_OUT_OF_\w+|out of (?:device )?memory|"
            r"Exceeded max size of memory).*",
        ),
        "the model or its cache does not fit into memory: {text}; a smaller kv_cache_memory, or weights in fewer bits",
        (FIT,),
    ),
    Rule(
        "plugin_unloadable",
        Rank.CAUSE,
        (rf"{_ENDED}Cannot load library \S*openvino_(?P<device>\w+)_plugin\.so\S*: (?P<missing>[\w.+-]+\.so[\w.]*): ",),
        "OpenVINO's plugin {device} cannot be loaded: the library {missing} is not on the node",
        ("cluster apply engine",),
    ),
)
LAST = Rule("engine_ended", Rank.UNNAMED, (rf"{_ENDED}(?P<why>.+)",), "the engine ended: {why}", (LOG,))

ENGINE_RULES = Rules((*OWN, *ACCELERATOR_RULES, *PROCESS_RULES, LAST), alive=(r"\S+ \S+ INFO Ready: ",))
