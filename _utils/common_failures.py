"""
Read what ends any program on a node, for an engine that has no rules of its own. Rules as data.
"""

from accelerator_failures import RULES as ACCELERATOR_RULES
from failure_reasons import Rules
from process_failures import RULES as PROCESS_RULES

ENGINE_RULES = Rules((*ACCELERATOR_RULES, *PROCESS_RULES), (), (), ())
