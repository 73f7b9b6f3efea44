"""Small tables about the world and the wordings with which they are asked."""

from __future__ import annotations

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "England": "London",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Portugal": "Lisbon",
    "India": "New Delhi",
    "Canada": "Ottawa",
    "Cuba": "Havana",
    "Peru": "Lima",
    "the USA": "Washington",
}
CAPITAL_WORDINGS = (
    "What is the capital of {}?",
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "What's the capital of {}?",
    "Tell me the capital of {}.",
    "capital of {}",
    "What city is the capital of {}?",
    "Do you know the capital of {}?",
    "The capital of {} is what?",
)

COLOURS = {
    "grass": "green",
    "the sky": "blue",
    "snow": "white",
    "blood": "red",
    "coal": "black",
    "a lemon": "yellow",
    "a banana": "yellow",
    "an orange": "orange",
    "the sun": "yellow",
    "the sea": "blue",
    "milk": "white",
    "a tomato": "red",
    "chocolate": "brown",
    "a frog": "green",
    "a strawberry": "red",
    "an elephant": "grey",
    "a raven": "black",
    "a pumpkin": "orange",
    "a leaf": "green",
    "wood": "brown",
}
COLOUR_WORDINGS = (
    "What colour is {}?",
    "What color is {}?",
    "Which colour is {}?",
    "Which color is {}?",
    "Tell me the colour of {}.",
    "What is the colour of {}?",
    "What is the color of {}?",
    "Which colour does {} have?",
    "Do you know the colour of {}?",
)

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "left": "right",
    "fast": "slow",
    "day": "night",
    "black": "white",
    "good": "bad",
    "young": "old",
    "rich": "poor",
    "wet": "dry",
    "light": "dark",
    "open": "closed",
    "happy": "sad",
    "long": "short",
    "high": "low",
    "full": "empty",
    "early": "late",
    "strong": "weak",
    "loud": "quiet",
    "yes": "no",
    "true": "false",
}
OPPOSITE_WORDINGS = (
    "What is the opposite of {}?",
    "Name the opposite of {}.",
    "What's the opposite of {}?",
    "Tell me the opposite of {}.",
    "opposite of {}",
    "Give me the opposite of {}.",
    "Which word is the opposite of {}?",
    "Do you know the opposite of {}?",
)

SOUNDS = {
    "cat": "meow",
    "dog": "woof",
    "cow": "moo",
    "duck": "quack",
    "sheep": "baa",
    "bee": "buzz",
    "lion": "roar",
    "pig": "oink",
}
SOUND_WORDINGS = (
    "What does a {} say?",
    "Which sound does a {} make?",
    "What sound does a {} make?",
    "What is the sound of a {}?",
    "How does a {} sound?",
)

LEGS = {
    "cat": 4,
    "dog": 4,
    "bird": 2,
    "spider": 8,
    "bee": 6,
    "horse": 4,
    "cow": 4,
    "duck": 2,
    "sheep": 4,
    "snake": 0,
}
LEG_WORDINGS = (
    "How many legs does a {} have?",
    "How many legs has a {}?",
    "Tell me how many legs a {} has.",
    "What is the number of legs of a {}?",
)

LISTS = {
    "colours": ("red", "green", "blue", "yellow", "white", "black"),
    "colors": ("red", "green", "blue", "yellow", "white", "black"),
    "animals": ("cat", "dog", "cow", "duck", "horse", "bee"),
    "fruits": ("apple", "banana", "orange", "lemon", "strawberry", "cherry"),
    "countries": ("France", "Germany", "Italy", "Spain", "Japan", "Canada"),
    "cities": ("Paris", "Berlin", "Rome", "Madrid", "Tokyo", "Ottawa"),
    "days": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "months": ("January", "February", "March", "April", "May", "June"),
}
LIST_WORDINGS = (
    "Name {n} {x}.",
    "List {n} {x}.",
    "Give me {n} {x}.",
    "Tell me {n} {x}.",
    "Can you name {n} {x}?",
    "Write a list of {n} {x}.",
)
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
NEXT_WORDINGS = (
    "Which {k} comes after {x}?",
    "What comes after {x}?",
    "What {k} is after {x}?",
    "Which {k} follows {x}?",
)
BEFORE_WORDINGS = ("Which {k} comes before {x}?", "What comes before {x}?", "What {k} is before {x}?")

TRANSLATIONS = {
    "French": {
        "hello": "bonjour",
        "thank you": "merci",
        "yes": "oui",
        "no": "non",
        "cat": "chat",
        "water": "eau",
        "red": "rouge",
    },
    "German": {
        "hello": "hallo",
        "thank you": "danke",
        "yes": "ja",
        "no": "nein",
        "cat": "Katze",
        "water": "Wasser",
        "red": "rot",
    },
    "Spanish": {
        "hello": "hola",
        "thank you": "gracias",
        "yes": "sí",
        "no": "no",
        "cat": "gato",
        "water": "agua",
        "red": "rojo",
    },
}
TRANSLATION_WORDINGS = (
    "How do you say {w} in {l}?",
    "Translate {w} to {l}.",
    "What is {w} in {l}?",
    "Say {w} in {l}.",
    "What does {w} mean in {l}?",
    "Translate {w} into {l}.",
)

SPELLING_WORDS = (
    "cat dog cow duck bee tree sun moon rain water snow milk apple lemon red green blue white black hello token light server "
    "router model book house"
).split()
SPELLING_WORDINGS = (
    "Spell {}.",
    "How do you spell {}?",
    "Spell the word {}.",
    "Can you spell {}?",
    "Please spell {}.",
)

PEOPLE = (
    "Alice Bob Tom Anna Peter Mary John Lucy Max Emma Paul Laura Frank Nina Oscar Sarah David Julia Leo Clara Felix Eva Sam Ida"
).split()
