"""Bring nodes to another image or profile, one at a time, with the deployment taken down and put back."""
