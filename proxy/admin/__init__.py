"""The admin HTTP server, running in the supervisor's process.

``source`` is what it asks the supervisor for, ``exposition`` turns that into Prometheus metrics, ``app`` joins the
routers, ``server`` runs them on the admin socket. Each group of pages is a router in a module of its own: ``health`` and
``metrics`` today; a JSON API and a console go beside them.
"""
