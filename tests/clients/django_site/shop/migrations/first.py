"""The tables, and rows made by a function as data migrations do."""

from __future__ import annotations

from django.contrib.postgres.fields import ArrayField  # type: ignore[import-untyped]
from django.db import migrations, models  # type: ignore[import-untyped]


class Migration(migrations.Migration):  # type: ignore[misc]
    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Customer",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True)),
                (
                    "tags",
                    ArrayField(base_field=models.CharField(max_length=20), default=list, size=None),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("placed", models.DateTimeField(db_index=True)),
                ("amount", models.DecimalField(decimal_places=2, max_digits=12)),
                ("details", models.JSONField(default=dict)),
                (
                    "customer",
                    models.ForeignKey(on_delete=models.CASCADE, related_name="orders", to="shop.customer"),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="order",
            constraint=models.CheckConstraint(condition=models.Q(("amount__gte", 0)), name="amount_not_negative"),
        ),
    )
