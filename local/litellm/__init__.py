"""A stand-in for a LiteLLM proxy: the part of its API that the service uses, answering as LiteLLM 1.106.0 does.

`tests/contract` is one suite that passes on this server and on a real proxy; a behaviour it does not test is not
promised here. Kept in memory by one process; `--state FILE` also keeps it across restarts.

Left out: teams, budget resets, upstream models (every completion is canned), the cache that lets other replicas
accept a deleted key for a while, and the delay with which a real proxy writes spend to its database.
"""
