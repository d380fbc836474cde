"""
Name what ends any program on a node: memory, disks, ports, permissions, libraries, names. Rules as data.
"""

from failure_reasons import Rank, Rule
from signal_failures import RULES as SIGNAL_RULES

LOG = "cluster logs NODE -n 200"
ON_NODE = "cluster salt -- MINION cmd.run "

# The kernel's own account, where its log is in the program's.
_OUT_OF_MEMORY = (
    r"(?:Memory cgroup out of memory|Out of memory)(?: \(\w+\))?: Killed process (?P<pid>\d+) "
    r"\((?P<who>[^)]*)\)(?:.*?anon-rss:(?P<held>\d+) ?kB)?",
    r"oom-kill:constraint=\w+.*?task=(?P<who>[^,]+),pid=(?P<pid>\d+)",
)

RULES = (
    # Disks and shared memory.
    Rule(
        "shared_memory_full",
        Rank.CAUSE,
        (
            r"unable to (?:write to file|allocate shared memory\(shm\) for file|resize file) <(?P<file>/torch_[^>]*)>"
            r".*?(?:No space left on device|to the right size)",
            r"No space left on device: '?(?P<file>/dev/shm/[^']*|/psm_[^']*)",
            r"(?:ERROR: )?(?:Unexpected bus error[^\n]*insufficient shared memory|Bus error.*insufficient shared memory|insufficient shared memory \(shm\))",
        ),
        "/dev/shm is full[ ({file})]: a segment that processes share did not fit; give the node or container more of it "
        "(size= of its mount, --shm-size)",
        (ON_NODE + "'df -h /dev/shm'",),
    ),
    Rule(
        "disk_full",
        Rank.CAUSE,
        (
            r"\[Errno 28\] No space left on device(?:: '(?P<file>[^']+)')?",
            r"No space left on device(?: \((?:os error )?28\))?",
            r"\[Errno 122\] Disk quota exceeded(?:: '(?P<file>[^']+)')?",
            r"(?:Not enough free|not enough) disk space",
        ),
        "a disk of the node is full[, at {file}]: {text}",
        (ON_NODE + "'df -h'",),
    ),
    Rule(
        "read_only_files",
        Rank.CAUSE,
        (r"\[Errno 30\] Read-only file system(?:: '(?P<file>[^']+)')?", r"Read-only file system"),
        "a file system of the node is read-only[: {file}]",
        (ON_NODE + "'findmnt -o TARGET,OPTIONS'",),
    ),
    Rule(
        "storage_broken",
        Rank.CAUSE,
        (
            r"\[Errno (?:5|116)\] (?:Input/output error|Stale file handle)(?:: '(?P<file>[^']+)')?",
            r"(?:Input/output error|Stale (?:NFS )?file handle)",
        ),
        "the storage gave an error[ at {file}]: {text}",
        (ON_NODE + "'dmesg --level=err | tail'",),
    ),
    # Ports and addresses.
    Rule(
        "address_not_local",
        Rank.CAUSE,
        (
            r"(?:\[Errno 99\] )?[Cc]annot assign requested address(?:.*?addr='?(?P<address>[^')]+))?",
            r"\[Errno 99\]",
            r"EADDRNOTAVAIL",
            r"No such device \(addr='(?P<address>[^']+)'\)",
        ),
        "the node does not have the address that it was to listen at[ ({address})]: {text}",
        (ON_NODE + "'ip -brief address'",),
    ),
    Rule(
        "port_taken",
        Rank.CAUSE,
        (
            r"\[Errno 98\]",
            r"[Aa]ddress already in use",
            r"EADDRINUSE",
            r"Port \d+ is already in use",
            r"Cannot find a free port",
        ),
        "a port the worker needs is taken: {type}: {text}; another server, or one of this deployment that did not end",
        (ON_NODE + "'ss -ltnp'",),
        "exception",
    ),
    Rule(
        "port_taken",
        Rank.CAUSE,
        (r"[Aa]ddress already in use", r"\[Errno 98\]", r"EADDRINUSE"),
        "a port the worker needs is taken: {text}; another server, or one of this deployment that did not end",
        (ON_NODE + "'ss -ltnp'",),
    ),
    # Permissions and limits.
    Rule(
        "device_not_permitted",
        Rank.CAUSE,
        (
            r"Permission denied:? '?(?P<file>/dev/[\w./-]+)",
            r"(?:[Cc]annot|[Uu]nable to|[Ff]ailed to|Could not) open (?:device )?'?(?P<file>/dev/[\w./-]+)'?.*?"
            r"(?:Permission denied|Operation not permitted)",
            r"Unable to open (?P<file>/dev/kfd) read-write: (?:Permission denied|Operation not permitted)",
        ),
        "the worker may not open {file}: its user is not in the device's group, or the container was not given the device",
        (ON_NODE + "'ls -l {file}'",),
    ),
    Rule(
        "not_permitted",
        Rank.CAUSE,
        (r"\[Errno 13\] (?P<text>Permission denied.*)", r"\[Errno 1\] (?P<text>Operation not permitted.*)"),
        "the worker may not do what it needs to: {text}",
        (ON_NODE + "'ls -ld /var/cache/cluster /var/log/cluster'", LOG),
        "exception",
    ),
    Rule(
        "too_many_files",
        Rank.CAUSE,
        (r"\[Errno 24\] Too many open files", r"Too many open files"),
        "too many open files: the limit of the worker's process is too low (ulimit -n)",
        (ON_NODE + "'ulimit -n'",),
    ),
    Rule(
        "too_many_threads",
        Rank.CAUSE,
        (
            r"can't start new thread",
            r"pthread_create (?:failed|error).*?Resource temporarily unavailable",
            r"libgomp: Thread creation failed",
            r"OpenBLAS blas_thread_init: pthread_create failed",
            r"\[Errno 11\] Resource temporarily unavailable",
            r"fork(?: failed)?: (?:retry: )?Resource temporarily unavailable",
        ),
        "the node does not let the worker start another thread or process: {text}; its limit of processes is too low "
        "(ulimit -u, TasksMax, pids of the container)",
        (ON_NODE + "'ulimit -u; cat /proc/sys/kernel/pid_max'",),
    ),
    # Main memory.
    Rule(
        "memory_full",
        Rank.CAUSE,
        (
            r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory): you tried to allocate (?P<bytes>\d+) bytes",
            r"unable to mmap (?P<bytes>\d+) bytes from file <(?P<file>[^>]*)>: Cannot allocate memory",
            r"Unable to allocate (?P<amount>[\d.]+ [KMGT]iB) for an array",
            r"\[Errno 12\] Cannot allocate memory",
            r"Task was killed due to the node running low on memory",
            r"std::bad_alloc",
            r"(?:mmap|malloc|calloc|posix_memalign|memory allocation)\b.*?(?:[Cc]annot allocate memory|failed)",
            r"Cannot allocate memory",
            r"oneDNN.*?out of memory",
        ),
        "the node ran out of memory[: {bytes:bytes} more were asked for][: {amount} more were asked for]: {text}",
        ("cluster profile check --deploy", LOG),
    ),
    Rule(
        "memory_full",
        Rank.CAUSE,
        ("",),
        "the node ran out of memory (Python got none)",
        ("cluster profile check --deploy",),
        "exception",
        "MemoryError",
    ),
    Rule(
        "memory_full",
        Rank.CAUSE,
        _OUT_OF_MEMORY,
        "the node or its control group ran out of memory, and the kernel ended {who} (pid {pid})[, which held {held} kB]",
        ("cluster profile check --deploy", LOG),
    ),
    # Libraries and programs.
    Rule(
        "library_too_new",
        Rank.CAUSE,
        (r"version [`'](?P<version>(?:GLIBC|GLIBCXX|CXXABI)_[\d.]+)' not found(?: \(required by (?P<file>[^)]*)\))?",),
        "the engine was built for a newer system: {version} is not there[, which {file} needs]",
        ("cluster image build",),
    ),
    Rule(
        "library_missing",
        Rank.CAUSE,
        (
            r"(?:ImportError: )?(?P<library_file>[\w.+-]+\.so[\d.]*): cannot open shared object file",
            r"error while loading shared libraries: (?P<library_file>[\w.+-]+\.so[\d.]*)",
            r"[Cc]ould not (?:load|find) (?:dynamic |shared )?library:? '?(?P<library_file>[\w./+-]*\.so[\d.]*)",
            r"dlopen: (?P<library_file>[\w./+-]+\.so[\d.]*)",
        ),
        "the library {library_file} is not on the node: a package of the engine or the accelerator's driver is missing",
        ("cluster apply engine",),
        "exception",
    ),
    Rule(
        "library_missing",
        Rank.CAUSE,
        (r"\S+: error while loading shared libraries: (?P<library_file>[\w.+-]+\.so[\d.]*)",),
        "the library {library_file} is not on the node: a package of the engine or the accelerator's driver is missing",
        ("cluster apply engine",),
        "line",
    ),
    Rule(
        "library_other_version",
        Rank.CAUSE,
        (
            r"(?P<file>[^:\n]*): (?:undefined symbol|symbol lookup error)[:,] *(?P<symbol>\S+)",
            r"undefined symbol: (?P<symbol>\S+)",
        ),
        "two of the engine's libraries do not fit each other: {text}; torch and what was compiled against it are of "
        "different versions",
        ("cluster apply engine",),
    ),
    Rule(
        "packages_differ",
        Rank.CAUSE,
        (
            r"cannot import name '?(?P<what>\w+)'? from (?:partially initialized module )?'?(?P<module>[\w.]+)'?",
            r"(?:[\w.-]+ \S+ )?(?:requires|depends on) (?P<what>[\w.-]+[<>=!~]=?[^\s,]+)[^\n]*?(?:but|found|you have|installed)[^\n]*",
            r"module '(?P<module>[\w.]+)' has no attribute '(?P<what>\w+)'",
            r"(?:\w+\.)?__init__\(\) got an unexpected keyword argument '(?P<what>\w+)'",
        ),
        "two Python packages of the engine are of versions that do not fit each other: {text}",
        ("cluster apply engine",),
        "exception",
        "ImportError|AttributeError|VersionConflict|TypeError",
    ),
    Rule(
        "module_missing",
        Rank.CAUSE,
        (
            r"No module named '?(?P<module>[\w.]+)'?",
            r"(?:[\w ]*requires? (?:the )?)?`?(?P<module>[\w.-]+)`?(?: (?:library|package))?(?: is not (?:available|installed))?[.,] "
            r"[Pp]lease install",
            r"[Pp]lease install `?(?P<module>[A-Za-z][\w.-]*)",
        ),
        "the engine's environment lacks the Python package {module}",
        ("cluster apply engine",),
        "exception",
        "ModuleNotFoundError|ImportError",
    ),
    Rule(
        "compiler_missing",
        Rank.CAUSE,
        (
            r"Failed to find C compiler",
            r"No working C\+\+ compiler found",
            r"InvalidCxxCompiler",
            r"Python\.h: No such file or directory",
            r"(?:Command|command) '?\[?'[^']*(?:gcc|g\+\+|cc|clang|nvcc|hipcc|icpx)'[^\n]*returned non-zero exit status",
            r"Could not find nvcc",
            r"No such file or directory: '(?:[^']*/)?(?:nvcc|ninja|gcc|g\+\+|cc|c\+\+|clang|hipcc|icpx)'",
            r"ninja: (?:command )?not found",
        ),
        "the engine compiles kernels when it starts and has no compiler for it: {text}; install gcc and the Python headers, "
        "or start without compiling",
        ("cluster deploy DEPLOYMENT --set enforce_eager=true",),
        "exception",
    ),
    Rule(
        "compiler_missing",
        Rank.CAUSE,
        (r"\S+:\d+(?::\d+)?: (?:fatal )?error: (?P<text>\S+\.h: No such file or directory)",),
        "the engine compiles kernels when it starts and lacks a header for it: {text}; install it, or start without compiling",
        ("cluster deploy DEPLOYMENT --set enforce_eager=true",),
        "line",
    ),
    Rule(
        "program_missing",
        Rank.CAUSE,
        (r"cannot start: (?P<why>.*)",),
        "the worker's program could not be started: {why}",
        ("cluster apply engine",),
        "line",
    ),
    *SIGNAL_RULES,
    # Names and routes.
    Rule(
        "name_unknown",
        Rank.CAUSE,
        (
            r"\[Errno -[235]\] (?P<why>Name or service not known|Temporary failure in name resolution|No address associated.*)",
            r"gai error: -\d+ - (?P<why>[^)]*)",
            r"(?P<why>Failed to resolve '[^']+')",
        ),
        "a host's name has no address on this node ({why}): {text}",
        (ON_NODE + "'cat /etc/hosts'",),
        "exception",
    ),
    Rule(
        "no_route",
        Rank.CAUSE,
        (r"(?:\[Errno 1(?:13|01)\] )?(?:No route to host|Network is unreachable)",),
        "there is no way to the other node from here: {text}",
        ("cluster probe --only links",),
        "exception",
    ),
    Rule(
        "peer_unreachable",
        Rank.PEER,
        (
            r"\[Errno (?:111|104|110|32)\]",
            r"Connection (?:refused|reset by peer|closed by (?:remote )?peer|timed out|was likely closed)",
            r"Broken pipe",
        ),
        "the other rank could not be reached: {text}; it ended first, or the link between them is down",
        (LOG,),
        "exception",
    ),
)
