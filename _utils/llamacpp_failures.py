"""
Read what llama.cpp's server and its RPC server report when they cannot start or go on (0.7.0). Rules as data.
"""

from accelerator_failures import RULES as ACCELERATOR_RULES
from failure_reasons import Rank, Rule, Rules
from process_failures import RULES as PROCESS_RULES

LOG = "cluster logs NODE -n 200"
# Seconds since its start, and one letter for the level.
_LINE = r"(?:\d+(?:\.\d+)+ [EWI] +)?"

OWN = (
    Rule(
        "argument_refused",
        Rank.CAUSE,
        (rf"{_LINE}error: (?P<why>invalid argument: .*|while handling argument .*|unknown value .*)",),
        "error: {why}; this version of llama.cpp does not take what the deployment gives it (extra_arguments, or the engine map)",
        ("cluster profile check",),
    ),
    Rule(
        "model_unreadable",
        Rank.CAUSE,
        (rf"{_LINE}llama_model_load: error loading model: (?P<why>.*)",),
        "the model cannot be loaded: {why}",
        ("cluster apply model",),
    ),
    Rule(
        "memory_short",
        Rank.CAUSE,
        (
            rf"{_LINE}.*(?:failed to allocate|unable to allocate) (?P<what>\S* ?buffer[^\n]*)",
            rf"{_LINE}.*cudaMalloc failed: out of memory(?P<what>)",
            rf"{_LINE}ggml_vulkan: Device memory allocation of size \d+ failed(?P<what>)",
        ),
        "the model or its cache does not fit: {text}; a shorter max_model_len, fewer max_num_seqs, or fewer layers on this node",
        ("cluster profile check --deploy",),
    ),
    Rule(
        "port_taken",
        Rank.CAUSE,
        (r"Failed to create server socket", rf"{_LINE}.*couldn't bind (?:HTTP )?server socket(?P<where>.*)"),
        "the port that the worker is to listen on is taken, or its address is not on this node[:{where}]",
        ("cluster salt -- MINION cmd.run 'ss -ltnp'",),
    ),
    Rule(
        "follower_unreachable",
        Rank.PEER,
        (
            r".*Failed to connect to (?P<peer>[\d.]+:\d+)",
            r".*Remote RPC server crashed or returned malformed response",
        ),
        "the RPC server of another node[, {peer},] is gone or cannot be reached",
        ("cluster status",),
    ),
    Rule(
        "stopped_itself",
        Rank.UNNAMED,
        (r".*GGML_ASSERT\((?P<why>.*)\) failed",),
        "llama.cpp stopped itself: {why} was not so",
        (LOG,),
    ),
)

ENGINE_RULES = Rules((*OWN, *ACCELERATOR_RULES, *PROCESS_RULES), alive=(rf"{_LINE}.*server is listening",))
