"""Serve one model by OpenVINO GenAI behind an API in OpenAI's form.

Two processes: the API server answers HTTP and keeps the metrics; the engine's process owns the pipeline and steps it.
The library holds Python's lock for the whole of a step: in one process nothing would be answered meanwhile, `/health`
neither.
"""
