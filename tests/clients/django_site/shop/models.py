"""Customers and their orders."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField  # type: ignore[import-untyped]
from django.db import models  # type: ignore[import-untyped]


class Customer(models.Model):  # type: ignore[misc]
    name = models.CharField(max_length=100, unique=True)
    tags = ArrayField(models.CharField(max_length=20), default=list)

    class Meta:
        app_label = "shop"


class Order(models.Model):  # type: ignore[misc]
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE, related_name="orders")
    placed = models.DateTimeField(db_index=True)
    amount = models.DecimalField(max_digits=12, decimal_places=2)
    details = models.JSONField(default=dict)

    class Meta:
        app_label = "shop"
        constraints = (models.CheckConstraint(condition=models.Q(amount__gte=0), name="amount_not_negative"),)
