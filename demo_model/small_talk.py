"""Small talk, and the longer answers that make streaming visible."""

from __future__ import annotations

from demo_model.facts import Fact

SMALL_TALK = (
    Fact(
        ("Hello", "Hi", "Hello!", "Hi!", "Hey", "Hi there", "Hello there!", "Hey there!", "Greetings!"),
        "Hello! How can I help you?",
    ),
    Fact(("Good morning", "Good morning!", "A good morning to you!"), "Good morning! How can I help you?"),
    Fact(("Good evening", "Good evening!", "A good evening to you!"), "Good evening! How can I help you?"),
    Fact(
        ("How are you?", "How are you today?", "How do you do?", "How is it going?", "Are you well?"),
        "I am fine, thank you. How can I help you?",
    ),
    Fact(
        ("Thank you!", "Thanks!", "Thank you very much.", "Many thanks!", "Thanks a lot!", "Great, thanks."),
        "You are welcome!",
    ),
    Fact(("Goodbye", "Bye", "Bye!", "Goodbye!", "See you!", "See you later!"), "Goodbye! Have a nice day."),
    Fact(
        (
            "Who are you?",
            "What are you?",
            "Tell me about yourself.",
            "Introduce yourself.",
            "What is your name?",
            "What's your name?",
            "Which model are you?",
            "What model is this?",
            "Are you ChatGPT?",
            "Are you human?",
            "Are you a robot?",
        ),
        "I am the small demo model of lightllm.",
    ),
    Fact(
        (
            "What can you do?",
            "What do you know?",
            "How can you help me?",
            "Can you help me?",
            "Help",
            "Help me!",
            "What can I ask you?",
            "What should I ask?",
        ),
        "I can answer short questions about this server, do small sums, count, name colours, write small JSON "
        "objects and tell a story.",
    ),
    Fact(
        (
            "How big are you?",
            "How many parameters do you have?",
            "How large is this model?",
            "What is your size?",
        ),
        "I am very small: a few million parameters.",
    ),
    Fact(
        ("How were you trained?", "Who trained you?", "Who made you?", "Where do you come from?"),
        "A script of lightllm trained me in minutes on text that it made itself.",
    ),
    Fact(
        (
            "Tell me a joke.",
            "Tell me a joke",
            "Do you know a joke?",
            "Make me laugh.",
            "Say something funny.",
        ),
        "Why did the token cross the road? To get to the other slot.",
    ),
    Fact(
        ("Test", "Test!", "This is a test.", "Testing", "Ping", "ping!", "Are you there?"),
        "I am here. It works!",
    ),
    Fact(
        ("What is the meaning of life?", "What's the meaning of life?", "Tell me the meaning of life."),
        "Some say that it is 42.",
    ),
)

STORIES = (
    Fact(
        (
            "Tell me a story.",
            "Tell me a long story.",
            "Write a story.",
            "Can you tell me a story?",
            "I want to hear a story.",
            "Tell a story.",
            "Tell me a story about a robot.",
            "Write a story about a robot.",
            "Write me a story about a small robot.",
        ),
        "Once upon a time there was a small robot who lived in a library. Every night, when the people had gone home, "
        "it took a book from the shelf and read one page. It read about the sea, about the stars and about a dragon "
        "that was afraid of the dark. One night a little girl came back, because she had lost her red hat. The robot "
        "was shy, but it gave her the hat and said good evening. The girl sat down and asked for a story. So the robot "
        "told her about the dragon, and the girl laughed and laughed. From that day on she came every night, and the "
        "robot was never alone again.",
    ),
    Fact(
        (
            "Tell me a story about a cat.",
            "Write a story about a cat.",
            "Tell me a cat story.",
            "Can you tell me a story about a cat?",
            "Write me a story about a cat.",
        ),
        "There was once a grey cat who wanted to see the sea. She walked through the forest, over the hill and along the "
        "river. A dog asked her where she was going. To the sea, said the cat. Then I will come with you, said the dog. "
        "They walked for seven days and seven nights. When they came to the sea, it was blue and very big. The cat put "
        "one foot into the water. It is wet, she said, and they both went home, and were friends for ever.",
    ),
    Fact(
        (
            "Tell me a story about a dragon.",
            "Write a story about a dragon.",
            "Tell me a dragon story.",
            "Can you tell me a story about a dragon?",
            "Write me a story about a dragon.",
        ),
        "High in the mountains lived a green dragon who could not make fire. The other dragons laughed, so he went to the "
        "old owl for help. Eat a pepper, said the owl. The dragon ate one red pepper, then two, then ten. He opened his "
        "mouth, and a warm little flame came out. It was not big, but it was just right for making tea. Now all the "
        "dragons come to him every evening, and nobody laughs any more.",
    ),
)

LONG_ANSWERS = (
    Fact(
        (
            "How does lightllm work?",
            "Explain how lightllm works.",
            "How does the server work?",
            "What happens to my request?",
            "Explain the life of a request.",
            "How does a request travel through the server?",
        ),
        "1. The Http Server checks your request and cuts the text into tokens.\n"
        "2. The Router puts it in the waiting list and finds free KV slots for it.\n"
        "3. The Model Backend reads the prompt in the prefill and then writes one token in each round.\n"
        "4. The Detokenizer turns the tokens into text as soon as it is certain.\n"
        "5. The Http Server streams the text to you, and the slots are free again.",
    ),
    Fact(
        (
            "Write a poem.",
            "Write me a poem.",
            "Can you write a poem?",
            "Tell me a poem.",
            "I want a poem.",
            "Write a short poem.",
        ),
        "The sun goes up, the night is done,\nthe tokens travel one by one.\nA slot for each, and none to spare,\n"
        "the router counts them all with care.\nAnd when the last of them is said,\nthe little model goes to bed.",
    ),
    Fact(
        (
            "How do I make pancakes?",
            "Give me a recipe for pancakes.",
            "How to make pancakes?",
            "Write a recipe for pancakes.",
            "Do you know a recipe?",
            "Give me a recipe.",
        ),
        "You need two eggs, a cup of milk and a cup of flour.\n1. Mix the eggs with the milk.\n2. Add the flour and stir "
        "until it is smooth.\n3. Heat a little butter in a pan.\n4. Bake each side until it is brown.\nEnjoy your meal!",
    ),
)
