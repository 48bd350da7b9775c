"""Regard inside vLLM: attention of a server, shrunk, surveyed and steered request by request.

vLLM loads `entry_point.register` in every process, which does nothing unless the environment
variable `REGARD` asks for something (see `server_settings`). Then `cpu_backend` (on
other devices `backend`) attends in vLLM's place: who asks for nothing goes to vLLM's own kernel;
calls of the others are run through the one engine, over pages of their request, past its stages.
`endpoints` hands surveys out over HTTP.
"""
