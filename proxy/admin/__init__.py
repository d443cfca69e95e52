"""The admin HTTP server, running in the supervisor's process.

``source`` is what it asks the supervisor for, ``exposition`` turns that into Prometheus metrics, ``health`` holds the
probes. The JSON API is a router for each group of pages: ``overview`` (status), ``latencies``, ``models``, ``memory``
(decisions, memory, ledger) and ``traffic`` (clients, pools, settings, mode). ``console`` is a folder of static files
that use it. ``guard`` says who may ask, ``app`` joins all of it, ``server`` runs it on the admin socket.
"""
