"""The words and proportions that the demo's data are made of: countries, goods, brands, ways to pay and to ship.

Proportions are of the order of what published retail reports give (fashion comes back four times as often as books,
Germans pay by invoice, December sells twice what February does); what matters is that they differ between groups, as
they do in any shop's data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Country:
    """``customers`` is the country's share of them; ``methods`` and ``carriers`` are shares in the order of METHODS and
    CARRIERS; ``days`` what a parcel takes on average."""

    code: str
    region: str
    customers: float
    cities: tuple[str, ...]
    methods: tuple[float, ...]
    carriers: tuple[float, ...]
    days: float


METHODS: Final = ("card", "paypal", "invoice", "direct debit", "bank transfer", "instalments", "gift card", "cash")
CARRIERS: Final = ("DHL", "UPS", "FedEx", "DPD", "Hermes", "PostNL", "La Poste", "Royal Mail", "InPost")

COUNTRIES: Final = (
    Country("US", "North America", 0.25, ("New York", "Los Angeles", "Chicago", "Houston", "Seattle", "Boston",
    "Austin", "Denver", "Miami"),
            (.66, .2, .005, .01, .005, .09, .03, .0), (.01, .5, .46, .03, 0, 0, 0, 0, 0), 4.2),
    Country("DE", "DACH", 0.2, ("Berlin", "Hamburg", "Munich", "Cologne", "Frankfurt", "Stuttgart", "Leipzig",
    "Dresden"),
            (.11, .27, .36, .17, .04, .03, .02, .0), (.58, .07, .01, .15, .19, 0, 0, 0, 0), 2.1),
    Country("GB", "UK and Ireland", 0.13, ("London", "Manchester", "Birmingham", "Leeds", "Glasgow", "Bristol"),
            (.63, .25, .01, .03, .01, .05, .02, .0), (.08, .07, .02, .22, .21, 0, 0, .4, 0), 2.6),
    Country("FR", "Western Europe", 0.11, ("Paris", "Lyon", "Marseille", "Toulouse", "Lille", "Nantes"),
            (.7, .17, .01, .02, .01, .08, .01, .0), (.1, .08, .02, .2, 0, 0, .6, 0, 0), 2.9),
    Country("ES", "Southern Europe", 0.07, ("Madrid", "Barcelona", "Valencia", "Seville"),
            (.58, .25, .01, .01, .05, .08, .02, .0), (.4, .15, .05, .4, 0, 0, 0, 0, 0), 4.0),
    Country("IT", "Southern Europe", 0.07, ("Milan", "Rome", "Turin", "Naples", "Bologna"),
            (.43, .37, .01, .01, .05, .05, .08, .0), (.45, .2, .1, .25, 0, 0, 0, 0, 0), 4.6),
    Country("NL", "Western Europe", 0.05, ("Amsterdam", "Rotterdam", "Utrecht", "Eindhoven"),
            (.14, .13, .09, .02, .6, .01, .01, .0), (.25, .04, .01, .1, 0, .6, 0, 0, 0), 1.6),
    Country("PL", "Eastern Europe", 0.04, ("Warsaw", "Krakow", "Gdansk", "Wroclaw"),
            (.25, .06, .01, .01, .62, .04, .01, .0), (.12, .05, .01, .17, 0, 0, 0, 0, .65), 3.1),
    Country("AT", "DACH", 0.03, ("Vienna", "Graz", "Linz", "Salzburg"),
            (.28, .2, .38, .08, .03, .02, .01, .0), (.35, .05, .01, .34, .25, 0, 0, 0, 0), 2.4),
    Country("CH", "DACH", 0.02, ("Zurich", "Geneva", "Basel", "Bern"),
            (.38, .12, .44, .02, .02, .01, .01, .0), (.55, .15, .08, .22, 0, 0, 0, 0, 0), 3.3),
    Country("SE", "Nordics", 0.02, ("Stockholm", "Gothenburg", "Malmo"),
            (.34, .07, .39, .02, .03, .14, .01, .0), (.35, .15, .05, .45, 0, 0, 0, 0, 0), 3.5),
    Country("DK", "Nordics", 0.01, ("Copenhagen", "Aarhus", "Odense"),
            (.72, .06, .07, .02, .03, .08, .02, .0), (.3, .15, .05, .5, 0, 0, 0, 0, 0), 2.8),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Department:
    """``share`` of the lines sold; ``price`` is the median and ``spread`` the log standard deviation; ``returned`` is
    the share of its lines that come back, ``months`` the weight of each month, ``quantity`` the mean above 1."""

    name: str
    share: float
    price: float
    spread: float
    returned: float
    quantity: float
    months: tuple[float, ...]
    categories: tuple[str, ...]
    brands: tuple[str, ...]


_EVEN = (1.0,) * 12
DEPARTMENTS: Final = (
    Department("Electronics", .14, 140, 1.1, .07, .08, (.9, .8, .8, .8, .8, .8, .9, .9, .9, 1, 1.9, 1.8),
               ("Smartphones", "Laptops", "Tablets", "Headphones", "Cameras", "Televisions", "Smart Home",
                "Cables and Chargers", "Storage", "Game Consoles", "Printers", "Monitors", "Wearables", "Speakers"),
               ("Voltaro", "Kestrel", "Nimbus", "Orbix", "Hanabi", "Lumen", "Pixelworks", "Sonora")),
    Department("Fashion", .2, 42, .6, .29, .15, (.9, .8, 1, 1.1, 1.1, 1, .9, .8, 1.1, 1.1, 1.2, 1.1),
               ("Dresses", "Jeans", "T-Shirts", "Jackets", "Knitwear", "Underwear", "Suits", "Skirts", "Coats",
                "Swimwear", "Socks", "Accessories", "Maternity"),
               ("Alba", "Norden", "Maison Clair", "Urban Loom", "Tessa", "Ridgeline", "Cotton Row", "Velvet Fox",
                "Basics & Co")),
    Department("Shoes", .09, 69, .5, .34, .04, (.9, .8, 1.1, 1.2, 1.1, 1, .9, .9, 1.1, 1.1, 1.1, 1),
               ("Sneakers", "Boots", "Sandals", "Heels", "Running Shoes", "Loafers", "Slippers", "Children's Shoes"),
               ("Stride", "Alba", "Norden", "Pacer", "Calzado", "Ridgeline")),
    Department("Home and Living", .11, 48, .9, .1, .3, (1.1, .9, 1, 1, 1, .9, .9, .9, 1, 1.1, 1.2, 1.1),
               ("Bedding", "Lamps", "Rugs", "Sofas", "Tables", "Chairs", "Storage Boxes", "Curtains", "Decoration",
                "Mirrors", "Candles", "Wardrobes"),
               ("Hygge House", "Casa Nova", "Oakline", "Lumen", "Basics & Co", "Fjord")),
    Department("Kitchen", .08, 32, .8, .06, .25, (1, .9, .9, .9, .9, .9, .8, .9, 1, 1, 1.4, 1.6),
               ("Cookware", "Knives", "Coffee Machines", "Glasses", "Plates", "Baking", "Small Appliances",
                "Food Storage", "Kettles"),
               ("Cucina", "Oakline", "Brava", "Steelworks", "Hygge House")),
    Department("Beauty", .11, 18, .6, .03, .5, (.9, 1, .9, .9, 1.1, .9, .9, .9, .9, .9, 1.3, 1.5),
               ("Skin Care", "Perfume", "Make-up", "Hair Care", "Shaving", "Nails", "Bath and Shower", "Sun Care",
                "Oral Care"),
               ("Rosewater", "Clair", "Botanica", "Purelle", "Nord Skin", "Maison Clair")),
    Department("Sports", .07, 39, .8, .14, .1, (1.4, 1, 1, 1.2, 1.2, 1.2, 1.1, 1, .9, .8, .9, 1),
               ("Fitness", "Cycling", "Running", "Camping", "Football", "Yoga", "Winter Sports", "Swimming",
                "Climbing", "Tennis"),
               ("Pacer", "Stride", "Ridgeline", "Summit", "Velo Uno", "Aqua Pro")),
    Department("Toys", .06, 24, .7, .05, .2, (.7, .7, .8, .8, .8, .8, .7, .7, .8, 1, 2, 3),
               ("Building Blocks", "Board Games", "Dolls", "Puzzles", "Outdoor Toys", "Soft Toys", "Model Trains",
                "Learning Toys"),
               ("Brickly", "Playmore", "Little Fox", "Puzzle Barn")),
    Department("Books", .06, 14, .45, .015, .35, (1, .9, .9, .9, .9, .9, 1.1, 1.1, 1, 1, 1.2, 1.6),
               ("Fiction", "Crime", "Children's Books", "Cookbooks", "Travel Guides", "Science", "Comics",
                "Biographies", "Textbooks"),
               ("Harbour Press", "Lindenverlag", "Blue Owl", "Paperlane", "Northgate")),
    Department("Garden", .035, 36, .9, .07, .3, (.3, .5, 1.6, 2.4, 2.4, 1.7, 1.1, .8, .7, .5, .3, .3),
               ("Plants", "Garden Tools", "Barbecue", "Garden Furniture", "Pots", "Lawn Mowers", "Seeds", "Watering"),
               ("Greenleaf", "Oakline", "Terra", "Steelworks")),
    Department("Pets", .03, 22, .6, .025, .8, _EVEN,
               ("Dog Food", "Cat Food", "Aquarium", "Cages", "Leashes", "Cat Trees"),
               ("Happy Paws", "Felina", "Terra", "Aqua Pro")),
    Department("Baby", .015, 29, .7, .09, .5, _EVEN,
               ("Nappies", "Prams", "Car Seats", "Baby Clothes", "Feeding"),
               ("Little Fox", "Cotton Row", "Nestling")),
)  # fmt: skip

TASTES: Final = {
    "US": {"Electronics": 1.4, "Toys": 1.3, "Fashion": 0.8},
    "DE": {"Garden": 1.8, "Books": 1.5, "Shoes": 1.3},
    "GB": {"Garden": 1.5, "Books": 1.3, "Beauty": 1.2},
    "FR": {"Beauty": 1.7, "Kitchen": 1.4, "Fashion": 1.2},
    "ES": {"Fashion": 1.5, "Shoes": 1.3, "Garden": 0.4},
    "IT": {"Fashion": 1.6, "Shoes": 1.7, "Kitchen": 1.3},
    "NL": {"Garden": 1.6, "Sports": 1.6, "Home and Living": 1.2},
    "PL": {"Electronics": 1.5, "Baby": 1.8},
    "AT": {"Sports": 1.7, "Garden": 1.3},
    "CH": {"Sports": 1.9, "Electronics": 1.3},
    "SE": {"Home and Living": 1.6, "Sports": 1.4},
    "DK": {"Home and Living": 1.7, "Baby": 1.4},
}
"""How much more (or less) of a department a country buys than the others do."""

CHANNELS: Final = ("web", "app", "phone", "store")
WAREHOUSES: Final = {
    "North America": "Memphis",
    "DACH": "Leipzig",
    "UK and Ireland": "Coventry",
    "Western Europe": "Venlo",
    "Southern Europe": "Zaragoza",
    "Eastern Europe": "Poznan",
    "Nordics": "Malmo",
}
REASONS: Final = ("does not fit", "not as described", "changed my mind", "damaged", "arrived too late", "wrong item")
FIRST_NAMES: Final = (
    "Anna", "Ben", "Carla", "David", "Elena", "Felix", "Greta", "Hugo", "Ines", "Jonas", "Klara", "Luca", "Maria",
    "Noah", "Olivia", "Paul", "Quinn", "Rosa", "Simon", "Tara", "Uwe", "Vera", "William", "Xenia", "Yusuf", "Zoe",
)  # fmt: skip
LAST_NAMES: Final = (
    "Adams", "Bauer", "Costa", "Dubois", "Evans", "Fischer", "Garcia", "Hansen", "Ivanova", "Jansen", "Kowalski",
    "Lopez", "Martin", "Novak", "Olsen", "Petit", "Rossi", "Smith", "Taylor", "Urban", "Vogel", "Weber", "Young",
    "Zimmer",
)  # fmt: skip
ADJECTIVES: Final = (
    "Classic", "Compact", "Deluxe", "Essential", "Everyday", "Fine", "Grand", "Light", "Modern", "Natural", "Original",
    "Premium", "Pro", "Pure", "Slim", "Smart", "Soft", "Solid", "Sport", "Travel", "Urban", "Vintage",
)  # fmt: skip
