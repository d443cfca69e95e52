"""The texts of the demo's workload, with ``$names`` where `workload` puts literals."""

from __future__ import annotations

from typing import Final

REPORTS: Final = {
    "daily sales by category": """
SELECT c.department, c.name, count(DISTINCT o.id) AS orders, sum(oi.quantity) AS units,
       sum(oi.quantity * oi.unit_price - oi.discount) AS revenue
FROM orders o
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE o.ordered_at >= $day AND o.ordered_at < $next_day AND o.status <> 'cancelled'
GROUP BY c.department, c.name
ORDER BY revenue DESC""",
    "monthly sales of one category": """
SELECT date_trunc('month', o.ordered_at) AS month, p.brand, sum(oi.quantity) AS units,
       sum(oi.quantity * (oi.unit_price - p.cost) - oi.discount) AS margin
FROM categories c
JOIN products p ON p.category_id = c.id
JOIN order_items oi ON oi.product_id = p.id
JOIN orders o ON o.id = oi.order_id
WHERE c.department = $department AND c.name = $category AND o.ordered_at >= $year_ago AND o.ordered_at < $month
GROUP BY 1, 2
ORDER BY 1, margin DESC""",
    "year by country and department": """
SELECT cu.country, c.department, sum(oi.quantity * oi.unit_price - oi.discount) AS revenue
FROM orders o
JOIN customers cu ON cu.id = o.customer_id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE o.ordered_at >= $year_ago AND o.ordered_at < $month AND o.status = 'completed'
GROUP BY ROLLUP (cu.country, c.department)
ORDER BY 1, 2""",
    "customer segments": """
WITH spending AS (
    SELECT o.customer_id, count(*) AS orders, sum(o.total) AS spent, max(o.ordered_at) AS last_order
    FROM orders o
    WHERE o.status = 'completed' AND o.ordered_at >= $year_ago
    GROUP BY o.customer_id
    HAVING count(*) >= 3
)
SELECT cu.country, cu.tier, count(*) AS customers, avg(s.spent) AS average, max(s.last_order) AS last_order
FROM spending s
JOIN customers cu ON cu.id = s.customer_id
WHERE cu.newsletter
GROUP BY cu.country, cu.tier
HAVING count(*) > 5
ORDER BY average DESC""",
    "return rate of a department": """
SELECT c.name, count(*) AS sold, count(r.id) AS returned, round(100.0 * count(r.id) / count(*), 1) AS percent
FROM categories c
JOIN products p ON p.category_id = c.id
JOIN order_items oi ON oi.product_id = p.id
JOIN orders o ON o.id = oi.order_id
JOIN customers cu ON cu.id = o.customer_id
LEFT JOIN returns r ON r.order_id = oi.order_id AND r.line_no = oi.line_no
WHERE c.department = $department AND cu.country = $country AND o.ordered_at >= $year_ago AND o.ordered_at < $month
GROUP BY c.name
ORDER BY percent DESC""",
    "late parcels before the holidays": """
SELECT s.carrier, s.warehouse, count(*) AS parcels, avg(s.delivered_at - s.shipped_at) AS travel,
       count(*) FILTER (WHERE s.delivered_at::date > s.promised_on) AS late
FROM shipments s
JOIN orders o ON o.id = s.order_id
JOIN customers cu ON cu.id = o.customer_id
WHERE s.shipped_at >= $december AND s.shipped_at < $january AND cu.country = $country
GROUP BY s.carrier, s.warehouse
HAVING count(*) > 10
ORDER BY late DESC""",
    "failed payments by way and country": """
SELECT pa.method, cu.country, count(*) AS tries, count(*) FILTER (WHERE pa.status = 'failed') AS failed
FROM payments pa
JOIN orders o ON o.id = pa.order_id
JOIN customers cu ON cu.id = o.customer_id
WHERE pa.paid_at >= $year_ago AND pa.paid_at < $month
GROUP BY pa.method, cu.country
ORDER BY failed DESC
LIMIT 20""",
    "margin of a brand by store region": """
SELECT st.region, c.name, sum(oi.quantity * (oi.unit_price - p.cost) - oi.discount) AS margin
FROM products p
JOIN categories c ON c.id = p.category_id
JOIN order_items oi ON oi.product_id = p.id
JOIN orders o ON o.id = oi.order_id
JOIN stores st ON st.id = o.store_id
WHERE p.brand = $brand AND c.department = $department AND o.status = 'completed'
GROUP BY st.region, c.name
ORDER BY margin DESC""",
    "first orders of new customers": """
SELECT cu.country, o.channel, count(DISTINCT cu.id) AS customers, sum(oi.quantity * oi.unit_price) AS revenue
FROM customers cu
JOIN orders o ON o.customer_id = cu.id
JOIN order_items oi ON oi.order_id = o.id
WHERE cu.signed_up_on >= $month AND cu.signed_up_on < $next_month
  AND o.ordered_at >= $month AND o.ordered_at < $next_month
GROUP BY cu.country, o.channel
ORDER BY revenue DESC""",
    "revenue brought by referrals": """
SELECT a.country, count(DISTINCT a.id) AS referrers, count(DISTINCT b.id) AS referred, sum(o.total) AS revenue
FROM customers a
JOIN customers b ON b.referred_by = a.id
JOIN orders o ON o.customer_id = b.id
WHERE a.tier = $tier AND o.status = 'completed'
GROUP BY a.country
ORDER BY revenue DESC""",
    "what a city pays with": """
SELECT pa.method, count(*) AS payments, sum(pa.amount) AS amount
FROM customers cu
JOIN orders o ON o.customer_id = cu.id
JOIN payments pa ON pa.order_id = o.id
WHERE cu.country = $country AND cu.city = $city AND pa.status = 'captured' AND o.ordered_at >= $year_ago
GROUP BY pa.method
ORDER BY amount DESC""",
    "activity of a tier": """
SELECT 'order' AS what, date_trunc('month', o.ordered_at) AS month, count(*) AS number, sum(o.total) AS amount
FROM orders o JOIN customers cu ON cu.id = o.customer_id
WHERE cu.tier = $tier AND o.ordered_at >= $year_ago
GROUP BY 2
UNION ALL
SELECT 'return', date_trunc('month', r.requested_at), count(*), sum(r.refund)
FROM returns r JOIN orders o2 ON o2.id = r.order_id JOIN customers cu2 ON cu2.id = o2.customer_id
WHERE cu2.tier = $tier AND r.requested_at >= $year_ago
GROUP BY 2
ORDER BY 1, 2""",
}

DASHBOARDS: Final = {
    "black friday": """
SELECT c.department, st.region, count(DISTINCT o.id) AS orders, sum(oi.quantity) AS units,
       sum(oi.quantity * oi.unit_price - oi.discount) AS revenue
FROM promotions pr
JOIN orders o ON o.promotion_id = pr.id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
JOIN stores st ON st.id = o.store_id
JOIN customers cu ON cu.id = o.customer_id
WHERE pr.code = $bf_code AND o.ordered_at >= $bf AND o.ordered_at < $bf_end AND cu.tier IN ('gold', 'platinum')
GROUP BY c.department, st.region
ORDER BY revenue DESC""",
    "promotion performance": """
SELECT pr.code, pr.discount_percent, count(DISTINCT o.id) AS orders, count(DISTINCT o.customer_id) AS customers,
       sum(oi.discount) AS given, sum(oi.quantity * (oi.unit_price - p.cost) - oi.discount) AS margin
FROM promotions pr
JOIN orders o ON o.promotion_id = pr.id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id AND p.category_id = pr.category_id
WHERE pr.kind = $kind AND pr.starts_on >= $year_ago
GROUP BY pr.code, pr.discount_percent
ORDER BY margin DESC""",
    "platinum customers and their goods": """
SELECT c.department, c.name, p.brand, count(*) AS lines, sum(oi.quantity * oi.unit_price) AS revenue
FROM customers cu
JOIN orders o ON o.customer_id = cu.id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE cu.tier = 'platinum' AND cu.country = $country AND o.channel = $channel
GROUP BY c.department, c.name, p.brand
ORDER BY revenue DESC
LIMIT 50""",
    "country overview": """
SELECT date_trunc('week', o.ordered_at) AS week, st.kind, count(DISTINCT o.id) AS orders,
       count(DISTINCT o.customer_id) AS customers, sum(pa.amount) AS paid, count(DISTINCT s.id) AS parcels
FROM customers cu
JOIN orders o ON o.customer_id = cu.id
JOIN stores st ON st.id = o.store_id
JOIN payments pa ON pa.order_id = o.id
JOIN shipments s ON s.order_id = o.id
WHERE cu.country = $country AND st.country = $country AND o.ordered_at >= $year_ago AND o.ordered_at < $month
  AND pa.status = 'captured'
GROUP BY 1, 2
ORDER BY 1, 2""",
    "orders across borders": """
SELECT cu.country AS buyer, st.name AS store, c.department, count(*) AS lines,
       sum(oi.quantity * oi.unit_price) AS revenue
FROM stores st
JOIN orders o ON o.store_id = st.id
JOIN customers cu ON cu.id = o.customer_id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE st.country = $country AND cu.country = $country2
GROUP BY cu.country, st.name, c.department
ORDER BY revenue DESC""",
    "returned for a reason": """
SELECT p.name, p.brand, count(*) AS times, sum(r.refund) AS refunded, avg(s.delivered_at - s.shipped_at) AS travel
FROM returns r
JOIN order_items oi ON oi.order_id = r.order_id AND oi.line_no = r.line_no
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
JOIN orders o ON o.id = r.order_id
JOIN shipments s ON s.order_id = o.id
WHERE r.reason = $reason AND c.department = $department AND r.requested_at >= $year_ago
  AND r.requested_at < $month
GROUP BY p.name, p.brand
ORDER BY refunded DESC
LIMIT 25""",
    "late and sent back": """
SELECT s.carrier, cu.country, c.department, count(*) AS lines, sum(r.refund) AS refunded
FROM shipments s
JOIN orders o ON o.id = s.order_id
JOIN customers cu ON cu.id = o.customer_id
JOIN returns r ON r.order_id = o.id
JOIN order_items oi ON oi.order_id = r.order_id AND oi.line_no = r.line_no
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE s.carrier = $carrier AND s.delivered_at::date > s.promised_on AND r.reason = 'arrived too late'
  AND cu.country = $country
GROUP BY s.carrier, cu.country, c.department
ORDER BY refunded DESC""",
    "instalments and what they buy": """
SELECT c.name, p.brand, count(DISTINCT o.id) AS orders, sum(pa.amount) AS amount
FROM payments pa
JOIN orders o ON o.id = pa.order_id
JOIN customers cu ON cu.id = o.customer_id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE pa.method = 'instalments' AND cu.country = $country AND c.department = 'Electronics' AND p.price > 300
  AND pa.paid_at >= $half_ago
GROUP BY c.name, p.brand
ORDER BY amount DESC""",
    "whole year of a category": """
SELECT st.region, cu.tier, pr.kind, count(DISTINCT o.id) AS orders,
       sum(oi.quantity * oi.unit_price - oi.discount) AS revenue
FROM categories c
JOIN products p ON p.category_id = c.id
JOIN order_items oi ON oi.product_id = p.id
JOIN orders o ON o.id = oi.order_id
JOIN customers cu ON cu.id = o.customer_id
JOIN stores st ON st.id = o.store_id
LEFT JOIN promotions pr ON pr.id = o.promotion_id
WHERE c.name = $category AND c.department = $department AND o.ordered_at >= $year_ago AND o.ordered_at < $month
GROUP BY st.region, cu.tier, pr.kind
ORDER BY revenue DESC""",
    "eight tables for the board": """
SELECT c.department, cu.tier, pa.method, st.kind, count(DISTINCT o.id) AS orders,
       sum(oi.quantity * oi.unit_price) AS revenue
FROM promotions pr
JOIN orders o ON o.promotion_id = pr.id
JOIN customers cu ON cu.id = o.customer_id
JOIN stores st ON st.id = o.store_id
JOIN payments pa ON pa.order_id = o.id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE pr.kind = 'seasonal' AND cu.country = $country AND c.department = $department AND pa.method = $method
  AND o.ordered_at >= $year_ago
GROUP BY c.department, cu.tier, pa.method, st.kind
ORDER BY revenue DESC""",
    "newsletter readers and their promotions": """
SELECT pr.code, cu.country, count(DISTINCT cu.id) AS customers, sum(oi.discount) AS given
FROM promotions pr
JOIN orders o ON o.promotion_id = pr.id
JOIN customers cu ON cu.id = o.customer_id
JOIN order_items oi ON oi.order_id = o.id
WHERE pr.kind = 'newsletter' AND cu.newsletter AND cu.tier <> 'basic'
GROUP BY pr.code, cu.country
HAVING count(DISTINCT cu.id) > 3
ORDER BY given DESC
LIMIT 30""",
    "refunds of a carrier's parcels": """
SELECT s.warehouse, c.department, count(DISTINCT r.id) AS returned, sum(r.refund) AS refunded
FROM shipments s
JOIN returns r ON r.order_id = s.order_id
JOIN order_items oi ON oi.order_id = r.order_id AND oi.line_no = r.line_no
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE s.carrier = $carrier AND s.shipped_at >= $year_ago AND s.shipped_at < $month
GROUP BY s.warehouse, c.department
ORDER BY refunded DESC""",
    "full history of good customers": """
SELECT cu.country, c.department, pa.method, s.carrier, count(DISTINCT o.id) AS orders,
       count(DISTINCT s.id) AS parcels, sum(oi.quantity * oi.unit_price - oi.discount) AS revenue
FROM customers cu
JOIN orders o ON o.customer_id = cu.id
JOIN payments pa ON pa.order_id = o.id
JOIN shipments s ON s.order_id = o.id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE cu.tier IN ('gold', 'platinum') AND cu.country IN ($country, $country2) AND o.ordered_at >= $year_ago
GROUP BY cu.country, c.department, pa.method, s.carrier
ORDER BY revenue DESC
LIMIT 100""",
    "online and in the shop": """
SELECT st.name, cu.tier, count(DISTINCT cu.id) AS customers, count(DISTINCT a.id) AS online,
       count(DISTINCT b.id) AS visits
FROM customers cu
JOIN orders a ON a.customer_id = cu.id
JOIN orders b ON b.customer_id = cu.id
JOIN stores st ON st.id = b.store_id
WHERE cu.country = $country AND a.channel = 'app' AND b.channel = 'store' AND a.ordered_at >= $year_ago
  AND b.ordered_at >= $year_ago
GROUP BY st.name, cu.tier
ORDER BY customers DESC""",
    "what late parcels cost": """
SELECT c.department, cu.tier, count(DISTINCT o.id) AS orders, count(DISTINCT n.id) AS later_orders,
       sum(n.total) AS later_spent
FROM shipments s
JOIN orders o ON o.id = s.order_id
JOIN customers cu ON cu.id = o.customer_id
JOIN orders n ON n.customer_id = cu.id AND n.ordered_at > s.delivered_at
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE s.delivered_at::date > s.promised_on + 5 AND s.carrier = $carrier AND s.shipped_at >= $year_ago
  AND cu.country = $country
GROUP BY c.department, cu.tier
ORDER BY orders DESC""",
    "season, store and stock": """
SELECT st.name, c.name, pr.code, s.warehouse, sum(oi.quantity) AS units, count(DISTINCT r.id) AS returned
FROM promotions pr
JOIN orders o ON o.promotion_id = pr.id
JOIN stores st ON st.id = o.store_id
JOIN shipments s ON s.order_id = o.id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
LEFT JOIN returns r ON r.order_id = oi.order_id AND r.line_no = oi.line_no
WHERE pr.kind = 'seasonal' AND pr.starts_on >= $year_ago AND c.department IN ('Fashion', 'Shoes')
  AND st.region = $region
GROUP BY st.name, c.name, pr.code, s.warehouse
ORDER BY units DESC
LIMIT 100""",
}

LISTS: Final = {
    "best sellers of a category": """
SELECT p.sku, p.name, p.brand, sum(oi.quantity) AS units
FROM products p
JOIN order_items oi ON oi.product_id = p.id
JOIN orders o ON o.id = oi.order_id
JOIN categories c ON c.id = p.category_id
WHERE c.name = $category AND c.department = $department AND o.ordered_at >= $year_ago AND o.ordered_at < $month
GROUP BY p.id
ORDER BY units DESC
LIMIT 20""",
    "also bought by the same people": """
SELECT c2.department, c2.name, count(DISTINCT cu.id) AS customers, count(*) AS lines
FROM categories c1
JOIN products p1 ON p1.category_id = c1.id
JOIN order_items i1 ON i1.product_id = p1.id
JOIN orders o1 ON o1.id = i1.order_id
JOIN customers cu ON cu.id = o1.customer_id
JOIN orders o2 ON o2.customer_id = cu.id AND o2.id <> o1.id
JOIN order_items i2 ON i2.order_id = o2.id
JOIN products p2 ON p2.id = i2.product_id
JOIN categories c2 ON c2.id = p2.category_id
WHERE c1.name = $category AND c1.department = $department AND o1.ordered_at >= $year_ago
  AND o1.ordered_at < $month
GROUP BY c2.department, c2.name
ORDER BY customers DESC
LIMIT 20""",
    "bought again": """
SELECT p.name, p.brand, count(DISTINCT a.customer_id) AS customers, count(*) AS times
FROM products p
JOIN order_items i1 ON i1.product_id = p.id
JOIN orders a ON a.id = i1.order_id
JOIN orders b ON b.customer_id = a.customer_id AND b.ordered_at > a.ordered_at
JOIN order_items i2 ON i2.order_id = b.id AND i2.product_id = p.id
JOIN categories c ON c.id = p.category_id
WHERE c.department = $department AND a.ordered_at >= $year_ago
GROUP BY p.id
ORDER BY times DESC
LIMIT 20""",
    "between two brands": """
SELECT cu.country, cu.tier, count(DISTINCT cu.id) AS customers
FROM products p1
JOIN order_items i1 ON i1.product_id = p1.id
JOIN orders o1 ON o1.id = i1.order_id
JOIN customers cu ON cu.id = o1.customer_id
JOIN orders o2 ON o2.customer_id = cu.id AND o2.ordered_at > o1.ordered_at
JOIN order_items i2 ON i2.order_id = o2.id
JOIN products p2 ON p2.id = i2.product_id
WHERE p1.brand = $brand AND p2.brand = $brand2 AND o1.ordered_at >= $year_ago AND o1.ordered_at < $month
GROUP BY cu.country, cu.tier
ORDER BY customers DESC""",
    "baskets of two departments": """
SELECT c1.name AS one, c2.name AS other, count(DISTINCT i1.order_id) AS orders
FROM order_items i1
JOIN order_items i2 ON i2.order_id = i1.order_id
JOIN products p1 ON p1.id = i1.product_id
JOIN categories c1 ON c1.id = p1.category_id
JOIN products p2 ON p2.id = i2.product_id
JOIN categories c2 ON c2.id = p2.category_id
WHERE c1.department = $department AND c2.department = $department2
GROUP BY c1.name, c2.name
ORDER BY orders DESC
LIMIT 30""",
    "friends of friends": """
SELECT a.id, a.full_name, count(DISTINCT c.id) AS brought, sum(o.total) AS revenue
FROM customers a
JOIN customers b ON b.referred_by = a.id
JOIN customers c ON c.referred_by = b.id
JOIN orders o ON o.customer_id = c.id
WHERE a.country = $country AND o.status = 'completed'
GROUP BY a.id
ORDER BY revenue DESC
LIMIT 20""",
    "bought together": """
SELECT p2.name, p2.brand, count(*) AS times
FROM categories c
JOIN products p1 ON p1.category_id = c.id
JOIN order_items i1 ON i1.product_id = p1.id
JOIN order_items i2 ON i2.order_id = i1.order_id AND i2.product_id <> i1.product_id
JOIN products p2 ON p2.id = i2.product_id
WHERE c.department = $department
GROUP BY p2.id
ORDER BY times DESC
LIMIT 15""",
    "top three of each category": """
SELECT name, sku, units, place
FROM (
    SELECT c.name, p.sku, sum(oi.quantity) AS units,
           rank() OVER (PARTITION BY c.id ORDER BY sum(oi.quantity) DESC) AS place
    FROM categories c
    JOIN products p ON p.category_id = c.id
    JOIN order_items oi ON oi.product_id = p.id
    JOIN orders o ON o.id = oi.order_id
    WHERE c.department = $department AND o.ordered_at >= $year_ago AND o.ordered_at < $month
    GROUP BY c.id, p.id
) ranked
WHERE place <= 3
ORDER BY name, place""",
    "buys this and not that": """
SELECT cu.id, cu.full_name, cu.email
FROM customers cu
WHERE cu.country = $country AND cu.tier IN ('gold', 'platinum')
  AND EXISTS (
    SELECT 1 FROM orders o JOIN order_items oi ON oi.order_id = o.id JOIN products p ON p.id = oi.product_id
    JOIN categories c ON c.id = p.category_id WHERE o.customer_id = cu.id AND c.name = $category)
  AND NOT EXISTS (
    SELECT 1 FROM orders o2 JOIN order_items oi2 ON oi2.order_id = o2.id JOIN products p2 ON p2.id = oi2.product_id
    JOIN categories c2 ON c2.id = p2.category_id WHERE o2.customer_id = cu.id AND c2.name = $category2)
ORDER BY cu.id
LIMIT 100""",
    "signed up and never came": """
SELECT cu.country, cu.city, count(*) AS customers
FROM customers cu
LEFT JOIN orders o ON o.customer_id = cu.id
WHERE o.id IS NULL AND cu.signed_up_on >= $year_ago AND cu.newsletter
GROUP BY cu.country, cu.city
ORDER BY customers DESC
LIMIT 20""",
    "goods that never came back": """
SELECT p.sku, p.name, count(*) AS sold
FROM products p
JOIN categories c ON c.id = p.category_id
JOIN order_items oi ON oi.product_id = p.id
WHERE c.department = $department AND p.price > 50
  AND NOT EXISTS (SELECT 1 FROM returns r JOIN order_items x ON x.order_id = r.order_id AND x.line_no = r.line_no
                  WHERE x.product_id = p.id)
GROUP BY p.id
ORDER BY sold DESC
LIMIT 25""",
    "customers who send most back": """
SELECT cu.id, cu.full_name, cu.tier, count(*) AS returned, sum(r.refund) AS refunded
FROM customers cu
JOIN orders o ON o.customer_id = cu.id
JOIN returns r ON r.order_id = o.id
WHERE cu.country = $country AND r.requested_at >= $year_ago AND r.requested_at < $month
GROUP BY cu.id
HAVING count(*) >= 5
ORDER BY refunded DESC
LIMIT 50""",
    "came back within thirty days": """
SELECT cu.tier, count(DISTINCT cu.id) AS customers, count(*) AS pairs
FROM orders a
JOIN orders b ON b.customer_id = a.customer_id AND b.ordered_at > a.ordered_at
             AND b.ordered_at < a.ordered_at + interval '30 days'
JOIN customers cu ON cu.id = a.customer_id
WHERE a.ordered_at >= $month AND a.ordered_at < $next_month AND a.channel = $channel
GROUP BY cu.tier
ORDER BY customers DESC""",
    "dearer than their category": """
SELECT p.sku, p.name, p.price, count(*) AS sold
FROM products p
JOIN categories c ON c.id = p.category_id
JOIN order_items oi ON oi.product_id = p.id
JOIN orders o ON o.id = oi.order_id
WHERE c.department = $department AND o.ordered_at >= $month AND o.ordered_at < $next_month
  AND p.price > (SELECT avg(q.price) * 2 FROM products q WHERE q.category_id = p.category_id)
GROUP BY p.id
ORDER BY sold DESC
LIMIT 20""",
    "fashion for the young of a city": """
SELECT p.brand, c.name, count(*) AS lines
FROM customers cu
JOIN orders o ON o.customer_id = cu.id
JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id
JOIN categories c ON c.id = p.category_id
WHERE cu.country = $country AND cu.city = $city AND cu.birth_year > 1995 AND c.department IN ('Fashion', 'Shoes')
  AND o.channel = 'app'
GROUP BY p.brand, c.name
ORDER BY lines DESC
LIMIT 20""",
    "parcels that never arrived": """
SELECT s.id, s.carrier, o.id AS order_id, o.total, cu.full_name, cu.country
FROM shipments s
JOIN orders o ON o.id = s.order_id
JOIN customers cu ON cu.id = o.customer_id
WHERE s.delivered_at IS NULL AND s.shipped_at >= $quarter AND s.shipped_at < $next_quarter AND o.total > 200
ORDER BY o.total DESC
LIMIT 40""",
    "unpaid invoices": """
SELECT cu.id, cu.full_name, count(*) AS invoices, sum(pa.amount) AS owed
FROM payments pa
JOIN orders o ON o.id = pa.order_id
JOIN customers cu ON cu.id = o.customer_id
WHERE pa.method = 'invoice' AND pa.status = 'pending' AND cu.country IN ('DE', 'AT', 'CH')
GROUP BY cu.id
ORDER BY owed DESC
LIMIT 30""",
    "stores of a region": """
SELECT st.name, st.kind, count(*) AS orders, sum(o.total) AS revenue, count(DISTINCT o.customer_id) AS customers
FROM stores st
JOIN orders o ON o.store_id = st.id
WHERE st.region = $region AND o.ordered_at >= $year_ago AND o.ordered_at < $month
GROUP BY st.id
ORDER BY revenue DESC
LIMIT 10""",
}

POINTS: Final = {
    "one order with its lines": """
SELECT o.id, o.status, oi.line_no, oi.quantity, oi.unit_price, p.name
FROM orders o JOIN order_items oi ON oi.order_id = o.id JOIN products p ON p.id = oi.product_id
WHERE o.id = $order_id
ORDER BY oi.line_no""",
    "one customer": "SELECT id, full_name, email, tier, country FROM customers WHERE id = $customer_id",
    "one product by its number": """
SELECT p.id, p.name, p.price, c.name AS category
FROM products p JOIN categories c ON c.id = p.category_id WHERE p.sku = $sku""",
    "a customer's last orders": """
SELECT o.id, o.ordered_at, o.total, st.name
FROM orders o JOIN stores st ON st.id = o.store_id
WHERE o.customer_id = $customer_id
ORDER BY o.ordered_at DESC
LIMIT 10""",
    "where is my parcel": """
SELECT s.carrier, s.shipped_at, s.delivered_at, o.status, cu.full_name
FROM orders o JOIN shipments s ON s.order_id = o.id JOIN customers cu ON cu.id = o.customer_id
WHERE o.id = $order_id""",
}
