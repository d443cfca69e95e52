"""For Django's test runner: each TestCase in a transaction; the TransactionTestCase truncates, its threads connect."""

# unittest runs these, not pytest.
# ruff: noqa: PT009, PT027

from __future__ import annotations

import datetime
import threading
from decimal import Decimal

from django.db import IntegrityError, connection, transaction  # type: ignore[import-untyped]
from django.db.models import Count, F, Sum, Window  # type: ignore[import-untyped]
from django.db.models.functions import Rank  # type: ignore[import-untyped]
from django.test import TestCase, TransactionTestCase  # type: ignore[import-untyped]

from tests.clients.django_site.shop.models import Customer, Order

MOMENT = datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC)


def fill(customers: int, orders: int) -> None:
    made = Customer.objects.bulk_create(Customer(name=f"c{n}", tags=["a", str(n)]) for n in range(customers))
    Order.objects.bulk_create(
        Order(customer=customer, placed=MOMENT, amount=Decimal(n) / 4, details={"n": n})
        for customer in made
        for n in range(orders)
    )


class Queries(TestCase):  # type: ignore[misc]
    @classmethod
    def setUpTestData(cls) -> None:
        fill(20, 15)

    def test_aggregates_and_windows(self) -> None:
        total = Order.objects.aggregate(n=Count("id"), amount=Sum("amount"))
        self.assertEqual(total, {"n": 300, "amount": Decimal("525.00")})
        by_customer = Customer.objects.annotate(total=Sum("orders__amount")).values_list("total", flat=True)
        self.assertEqual(set(by_customer), {Decimal("26.25")})
        ranked = Order.objects.annotate(place=Window(Rank(), order_by=F("amount").desc()))
        self.assertEqual(sum(order.place == 1 for order in ranked), 20)

    def test_json_and_arrays(self) -> None:
        self.assertEqual(Order.objects.filter(details__n__gte=10).count(), 100)
        self.assertEqual(Customer.objects.get(tags__contains=["7"]).name, "c7")

    def test_prefetching_and_server_side_cursors(self) -> None:
        with self.assertNumQueries(2):
            customers = list(Customer.objects.prefetch_related("orders"))
        self.assertEqual([len(customer.orders.all()) for customer in customers], [15] * 20)
        self.assertEqual(sum(1 for _ in Order.objects.iterator(chunk_size=7)), 300)

    def test_savepoints(self) -> None:
        with self.assertRaises(IntegrityError), transaction.atomic():
            Customer.objects.create(name="c1")
        with self.assertRaises(IntegrityError), transaction.atomic():
            Order.objects.filter(amount__gt=0).update(amount=-F("amount"))
        self.assertEqual(Customer.objects.count(), 20)

    def test_each_test_starts_from_the_same_data(self) -> None:
        Customer.objects.all().delete()
        self.assertEqual(Order.objects.count(), 0)

    def test_raw_queries_and_explain(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("select %s::text || %s::text, '100%%'", ["a", "b"])
            self.assertEqual(cursor.fetchone(), ("ab", "100%"))
        self.assertIn("Scan", Order.objects.filter(amount=1).explain(analyze=True))


class Transactions(TransactionTestCase):  # type: ignore[misc]
    def test_threads_wait_for_a_row_lock(self) -> None:
        fill(1, 1)

        def work() -> None:
            with transaction.atomic():
                order = Order.objects.select_for_update().get()
                order.amount += 1
                order.save()
            connection.close()

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(Order.objects.get().amount, 6)

    def test_on_commit_and_rollback(self) -> None:
        seen: list[str] = []
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            fill(1, 1)
            transaction.on_commit(lambda: seen.append("rolled back"))
            raise ZeroDivisionError
        with transaction.atomic():
            fill(2, 2)
            transaction.on_commit(lambda: seen.append("committed"))
        self.assertEqual((seen, Order.objects.count()), (["committed"], 4))

    def test_tables_were_emptied_and_sequences_reset(self) -> None:
        self.assertEqual((Customer.objects.count(), Order.objects.count()), (0, 0))
