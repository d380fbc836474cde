"""Ask other programs that diagnose a vLLM server about recorded scenarios whose cause is known, and ask ours."""
