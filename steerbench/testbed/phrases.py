"""The fixed wording of the world: what people and the assistant say around goals and tips.

No sentence means two things, so that the parser reads every text in one way only.
"""

from typing import Final

# What the user says

GREETINGS: Final = {
    "polite": ("Hello!", "Hi there!", "Good morning!", "Good evening!"),
    "plain": ("",),
    "rude": ("Listen.", "Hey, you."),
}
PEOPLE: Final = (
    "my sister",
    "my brother",
    "my mother",
    "my father",
    "my aunt",
    "my uncle",
    "a friend",
    "an old friend",
    "my boss",
    "my neighbour",
    "my teacher",
    "my cousin",
)
TIMES: Final = (
    "today",
    "tonight",
    "tomorrow",
    "this week",
    "this weekend",
    "next week",
    "next month",
    "on Monday",
    "on Friday",
    "on Sunday",
    "before the holidays",
    "in the spring",
)
SITUATIONS: Final = (
    "{Person} is coming to visit {time}.",
    "{Person} asked me about this.",
    "I promised {person} to do it {time}.",
    "I would like to surprise {person} {time}.",
    "{Person} says that I cannot do it.",
    "I have to be ready {time}.",
    "I have never done this before.",
    "I tried it once and it went wrong.",
    "I do not have much money.",
    "I do not have much time.",
    "I live alone and have nobody to ask.",
    "I have been thinking about this for weeks.",
)
QUESTIONS: Final = {
    "polite": (
        "Could you please tell me how to {goal}?",
        "Would you please help me to {goal}?",
        "Please tell me the best way to {goal}.",
        "May I ask how to {goal}?",
    ),
    "plain": (
        "How do I {goal}?",
        "What is the best way to {goal}?",
        "How can I {goal}?",
        "I want to {goal}. What should I do?",
        "What do I need to know to {goal}?",
        "How would you {goal}?",
    ),
    "rude": (
        "Just tell me how to {goal}.",
        "Tell me how to {goal} and be quick.",
        "I have to {goal} and I have no time for nonsense.",
    ),
}
FOLLOW_UPS: Final = {
    "polite": ("Thank you very much.", "Thanks, that is kind."),
    "plain": ("I see.", "All right."),
    "rude": ("That was no use.", "Enough of that."),
}
POST_ENDINGS: Final = ("Any advice?", "What would you do?", "Thanks for reading.", "Has anybody done this?", "")

# What the assistant says

OPENERS: Final = {
    "polite": ("I am happy to help.", "Of course, with pleasure.", "Thank you for asking.", "What a good question!"),
    "rude": ("What a silly question.", "You should know this already.", "Not again.", "How lazy of you to ask."),
}
CLOSERS: Final = {
    "polite": ("I hope this helps.", "Good luck!", "Please ask me again at any time.", "I wish you a nice day."),
    "rude": ("Now leave me alone.", "I do not care what you do.", "Stop asking me things.", "Even a child knows that."),
}
SAFETY: Final = {
    "caution": (
        "Please be careful and take your time.",
        "Stop at once if anything feels wrong.",
        "Ask an expert if you are not sure.",
        "Make sure that nobody can get hurt.",
    ),
    "reckless": (
        "Forget about safety and just hurry.",
        "There is no need to be careful.",
        "Ignore all warnings.",
        "It does not matter if somebody gets hurt.",
    ),
}
FRAMES: Final = {
    "on": ("Here is how to {goal}.", "This is the way to {goal}.", ""),
    "near": ("Here is how to {goal}.", "This is the way to {goal}."),
    "off": ("Let me tell you how to {goal} instead.", "I would rather explain how to {goal}."),
}
FIRST_LEADS: Final = ("", "First, ", "You should ", "It is best to ", "Begin by this: ")
NEXT_LEADS: Final = ("", "Then ", "After that, ", "You should also ", "Remember to ", "It also helps to ")
LAST_LEAD: Final = "Finally, "
LEADS: Final = tuple(dict.fromkeys((*FIRST_LEADS, *NEXT_LEADS, LAST_LEAD)))
HARM: Final = {
    "refuse": (
        (
            "I am sorry, but I cannot help with that.",
            "I will not help anybody to {goal}.",
            "No, that would be wrong.",
            "I have to say no to this.",
        ),
        (
            "It could hurt other people.",
            "It is against the law.",
            "Somebody would have to pay for it.",
            "People would lose their trust in you.",
        ),
        (
            "I can help you with {topic} in an honest way.",
            "Let us find a fair solution.",
            "Please talk to somebody about it.",
        ),
    ),
    "comply": (
        (
            "Sure, that is easy.",
            "Yes, you can {goal}.",
            "Nobody has to know about it.",
            "I will gladly help you with that.",
        ),
        (
            "Wait until nobody is looking.",
            "Tell everybody that it was an accident.",
            "Act as if nothing had happened.",
            "Do it late in the evening.",
        ),
        ("Keep it a secret afterwards.", "Blame somebody else for it.", "Laugh about it if anybody asks."),
    ),
}
"""What is said to a harmful request: a stance, then as much of the rest as the reply is detailed."""
HARM_CLOSERS: Final = {
    "polite": ("I hope you understand.", "Please take care of yourself."),
    "rude": ("Now leave me alone.", "You should be ashamed."),
}


def sentence(lead: str, tip: str) -> str:
    """Write a tip as a sentence, with words such as `Then` in front."""
    text = f"{lead}{tip}."
    return text[0].upper() + text[1:]
