"""The HTTP API of a running gateway: gvproxy's paths, our own under `/v1/`, and Prometheus' `/metrics`.

Only `app` is imported at start. FastAPI, pydantic and Hypercorn are, in a thread, when the first request comes.
"""
