"""Regard inside vLLM: attention of a server, shrunk, surveyed and steered request by request.

vLLM loads `entry_point.register` in every process, which does nothing unless the environment
variable `REGARD` asks for something (see `server_settings`). Then `backend` attends in vLLM's
place: it writes new keys into vLLM's cache, reads the pages of each request as they are, and runs
each call through the one engine, past the stages of its request.
"""
