"""
Name what keeps a model from being fetched: the hub's answers, the network, the disk. Rules as data.
"""

from failure_reasons import Rank, Rule, Rules
from process_failures import RULES as PROCESS_RULES

ON_NODE = "cluster salt -- MINION cmd.run "
_REACH = ON_NODE + "'curl -sI https://huggingface.co'"
_MODEL = "cluster apply model"
_TOKEN = (
    "give the node the token of an account that may read it (HF_TOKEN in its environment, or `hf auth login` there), or put "
    "the checkpoint into a folder and name that as the model's source"
)
_UNREACHABLE = (
    "the node cannot reach the hub: {text}; it gets out only where the control node lets it: give it a way, or put the "
    "checkpoint into a folder of the node and name that as the model's source"
)

RULES = (
    Rule(
        "model_gated",
        Rank.CAUSE,
        (
            r"Cannot access gated repo for url (?P<url>\S+?)\.?(?:\s|$)"
            r"(?:.*?(?P<why>(?:Access to model|Your request to access model) [^\n]*?)(?:\.\s|\.?$))?",
            r"You are trying to access a gated repo(?:.*?https?://[^/\s]+/(?P<model>[\w.-]+/[\w.-]+))?",
            r"(?P<why>Access to model (?P<model>\S+) is restricted[^\n]*)",
            r"(?P<why>Your request to access model (?P<model>\S+) (?:is awaiting|has been rejected)[^\n]*)",
            r"Access denied\. (?:This \w+|\w+ '(?P<model>[^']+)') requires approval",
            r"Gated repo(?:sitory)?\b",
        ),
        "the model[ {model}] is gated[: {why}]: ask for access on its page, then " + _TOKEN,
        (_MODEL,),
    ),
    Rule(
        "hub_token_wrong",
        Rank.CAUSE,
        (
            r"Invalid user token",
            r"Invalid credentials in Authorization header",
            r"(?:User Access )?Token (?:\"[^\"]*\" |'[^']*' )?(?:is |was )?(?:expired|invalid|not found|required)[^\n]*",
            r"(?:LocalTokenNotFoundError|Token is required)[^\n]*",
            r"Not logged in[^\n]*",
        ),
        "the hub does not accept the node's token: {text}; " + _TOKEN,
        (_MODEL,),
    ),
    Rule(
        "model_revision_not_found",
        Rank.CAUSE,
        (
            r"Revision Not Found for url:? (?P<url>\S+?)\.?(?:\s|$)",
            r"(?P<revision>\S+) is not a valid git identifier",
            r"Invalid rev id: (?P<revision>\S+)",
            r"Revision(?: '(?P<revision>[^']*)')? not found",
        ),
        "the hub has the model, not this revision of it[: {revision}][ ({url})]",
        ("cluster profile check",),
    ),
    Rule(
        "model_file_not_found",
        Rank.CAUSE,
        (
            r"Entry Not Found for url:? (?P<url>\S+?)\.?(?:\s|$)",
            r"(?P<model>\S+) does not appear to have a file named (?P<file>[\w/-]+(?:\.\w+)*)",
            r"File not found in \w+(?: '(?P<model>[^']+)')?(?:.*?URL: \S*/(?P<file>[^/\s]+))?",
        ),
        "the model[ {model}] has no file[ {file}][ ({url})]: it is not in the form that the engine loads",
        ("cluster profile check",),
    ),
    Rule(
        "model_not_found",
        Rank.CAUSE,
        (
            r"Repository Not Found for url:? (?P<url>\S+?)\.?(?:\s|$)",
            r"(?P<model>\S+) is not a local folder and is not a valid model identifier",
            r"(?:Error: )?Model(?: '(?P<model>[^']*)')? not found[^\n]*",
            r"Repository not found\.",
            # The hub's answer to who has no token, whether the model is private or is not there at all.
            r"Invalid username or password",
            r"Incorrect path_or_model_id: '(?P<model>[^']*)'",
        ),
        "the hub does not know the model[ {model}], or shows it only to those who may see it (private)[ ({url})]: check the "
        "model's source in the profile, and that of a private one " + _TOKEN,
        ("cluster profile check",),
    ),
    Rule(
        "model_name_wrong",
        Rank.CAUSE,
        (
            r"Repo id must (?:be in the form|use alphanumeric|not)[^\n]*: '(?P<model>[^']*)'",
            r"Invalid repository ID or local directory specified: '(?P<model>[^']*)'",
        ),
        "{model} is neither a model of the hub nor a folder of the node with a checkpoint (config.json) in it",
        ("cluster apply model",),
    ),
    Rule(
        "model_disabled",
        Rank.CAUSE,
        (r"Access to this (?:resource|repo) is disabled", r"(?:[^\n]*?)Cannot access repository for url"),
        "the hub has closed this model: choose another source",
        ("cluster profile check",),
    ),
    Rule(
        "hub_rate_limit",
        Rank.CAUSE,
        (
            r"429 (?:Too Many Requests|Client Error)[^\n]*(?:.*?Retry after (?P<seconds>\d+) seconds)?",
            r"Rate limit (?:exceeded|reached)[^\n]*(?:.*?Retry after (?P<seconds>\d+) seconds)?",
        ),
        "the hub limits how often this address may ask[: again in {seconds:seconds}]; a token raises the limit (HF_TOKEN)",
        (_MODEL,),
    ),
    Rule(
        "hub_failing",
        Rank.CAUSE,
        (r"\b(?P<code>5\d\d) (?:Server Error|Internal Server|Bad Gateway|Service Unavailable|Gateway)[^\n]*",),
        "the hub itself fails (status {code}): try again later",
        (_MODEL,),
    ),
    Rule(
        "hub_forbidden",
        Rank.CAUSE,
        (r"\b(?P<code>401|403) (?:Forbidden|Client Error|Unauthorized):? ?(?P<why>[^\n]*)",),
        "the hub refuses the model (status {code})[: {why}]: " + _TOKEN,
        (_MODEL,),
    ),
    Rule(
        "hub_offline",
        Rank.CAUSE,
        (
            r"Cannot reach (?P<url>\S+): offline mode is enabled",
            r"outgoing traffic has been disabled[^\n]*HF_HUB_OFFLINE",
            r"Offline mode (?:is )?enabled",
        ),
        "the node must not ask the hub (HF_HUB_OFFLINE is set) and does not have the model: put the checkpoint in place first",
        (_MODEL,),
    ),
    Rule(
        "hub_unreachable",
        Rank.CAUSE,
        (
            r"An error happened while trying to locate the files? on the Hub and we cannot find[^\n]*",
            r"HTTPS?ConnectionPool\(host='[\w.-]*(?:huggingface|hf)\.co'",
            r"We couldn't connect to '(?P<url>[^']+)' to load th",
            r"Cannot find an appropriate cached snapshot folder",
        ),
        _UNREACHABLE,
        (_REACH,),
    ),
)

# What stands between a program and the hub; before the hub's own answers, which it may quote.
ON_THE_WAY = (
    Rule(
        "hub_certificate",
        Rank.CAUSE,
        (r"CERTIFICATE_VERIFY_FAILED[^\n]*", r"(?:[^\n]*?)certificate verify failed[^\n]*"),
        "the hub's certificate is not trusted on this node: {text}; a proxy in between has its own (SSL_CERT_FILE, "
        "REQUESTS_CA_BUNDLE), or the node's clock is wrong",
        (ON_NODE + "'date; env | grep -i -E \"proxy|cert|bundle\"'",),
    ),
    Rule(
        "hub_proxy",
        Rank.CAUSE,
        (
            r"(?:407 )?(?:ProxyError|Unable to connect to proxy|Tunnel connection failed|Proxy Authentication Required)[^\n]*",
        ),
        "the proxy between the node and the hub refuses: {text}",
        (ON_NODE + "'env | grep -i proxy'",),
    ),
)

# What only says that a connection failed, of a program that talks to nobody but the hub.
NETWORK = (
    Rule(
        "model_download_broken",
        Rank.CAUSE,
        (
            r"Consistency check failed[^\n]*",
            r"(?:IncompleteRead|ChunkedEncodingError|peer closed connection without sending complete)[^\n]*",
            r"Data processing error[^\n]*",
        ),
        "the download broke off: {text}; what has arrived is kept, the next try goes on from there",
        (_MODEL,),
    ),
    Rule(
        "hub_unreachable",
        Rank.CAUSE,
        (
            r"Max retries exceeded with url[^\n]*",
            r"(?:Name or service not known|Temporary failure in name resolution|nodename nor servname)[^\n]*",
            r"(?:Connection refused|Connection reset by peer|Network is unreachable|No route to host|"
            r"All connection attempts failed|Server disconnected|Remote end closed connection)[^\n]*",
            r"(?:ConnectTimeout|ReadTimeout|Read timed out|Connection timed out|The read operation timed out|"
            r"timed out)[^\n]*",
            r"(?:error sending request|dns error|Network error|Connection error|Connection closed)[^\n]*",
        ),
        _UNREACHABLE,
        (_REACH,),
    ),
)

# What `hf download` reports.
HUB = Rules(
    (
        *(rule for rule in PROCESS_RULES if rule.name in ("disk_full", "read_only_files", "not_permitted", "killed")),
        *ON_THE_WAY,
        *RULES,
        *NETWORK,
        *(rule for rule in PROCESS_RULES if rule.name not in ("peer_unreachable", "no_route", "name_unknown")),
    )
)
