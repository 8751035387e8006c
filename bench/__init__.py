"""`make bench`: what a request costs, measured through the local gateway and Lambda's own runtime client.

A figure of this machine is good for comparing with another of the same run, and for the counts beside it; a client, the
gateway, PostgreSQL and the functions share its cores, so wall time is more than Lambda's would be.
"""
