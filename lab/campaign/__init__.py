"""Break a lab that serves, one thing after another, and hold what must be true against it after each."""

from lab.campaign.course import Result, chosen, conduct
from lab.campaign.faults import KINDS
from lab.campaign.table import page, summary

__all__ = ["KINDS", "Result", "chosen", "conduct", "page", "summary"]
