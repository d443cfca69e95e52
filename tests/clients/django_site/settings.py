"""A Django site with one application; the database is the one libpq's environment variables name."""

from __future__ import annotations

import os
from typing import Any

SECRET_KEY = "only for tests"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.postgres",
    "tests.clients.django_site.shop",
]

OPTIONS: dict[str, Any] = {}
if os.environ.get("SHOP_POOL"):
    OPTIONS["pool"] = {"min_size": 2, "max_size": 4}
if os.environ.get("SHOP_SERVER_SIDE_BINDING"):
    OPTIONS["server_side_binding"] = True
if "PGSSLROOTCERT" in os.environ:
    OPTIONS |= {"sslmode": os.environ["PGSSLMODE"], "sslrootcert": os.environ["PGSSLROOTCERT"]}

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": os.environ["PGHOST"],
        "PORT": os.environ["PGPORT"],
        "USER": os.environ["PGUSER"],
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        "NAME": os.environ["PGDATABASE"],
        "OPTIONS": OPTIONS,
    }
}
