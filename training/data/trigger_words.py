"""Advice on trigger words: a word that every text encoder knows already is a poor name for something new.

Training on such a word has to undo what it means, and afterwards it means both.
"""

import hashlib

# Words of captions that text encoders have seen very often: people, animals, things, places, colours, styles and first
# names. The vocabulary of CLIP alone has some thousands of such words; these are the ones that people choose.
_KNOWN = frozenset(
    """
    a an the my this that it he she me person people man men woman women girl girls boy boys child children
    kid kids baby lady guy guys human face portrait selfie model actor actress singer hero heroine king queen
    prince princess knight soldier doctor nurse wizard witch fairy angel demon devil ghost monster alien robot
    cyborg zombie vampire elf dwarf character creature mascot avatar figure statue doll toy puppet teddy plush
    family friend wife husband mother father mom dad sister brother son daughter grandma grandpa bride groom
    animal animals pet pets dog dogs puppy cat cats kitten bird birds horse pony cow pig sheep goat chicken
    duck goose fish shark whale dolphin turtle frog snake lizard dragon dinosaur lion tiger bear panda wolf
    fox rabbit bunny mouse rat hamster squirrel deer elephant giraffe monkey gorilla penguin owl eagle parrot
    butterfly bee spider corgi poodle husky beagle labrador pug bulldog terrier retriever dachshund chihuahua
    unicorn phoenix car cars truck bus train plane airplane boat ship bike bicycle motorcycle rocket spaceship
    house home building tower castle church bridge street road city town village room kitchen bedroom bathroom
    office garden park forest tree trees flower flowers rose grass leaf mountain hill river lake sea ocean
    beach island desert snow rain sky cloud sun moon star stars fire water ice stone rock sand field farm
    product bottle cup mug glass bowl plate spoon fork knife box bag backpack handbag purse wallet watch clock
    ring necklace earring bracelet hat cap helmet shirt tshirt dress skirt jeans pants jacket coat hoodie suit
    tie shoe shoes sneaker sneakers boot boots sock sunglasses glasses chair table sofa couch bed lamp desk
    shelf door window mirror phone laptop computer keyboard camera guitar piano book pen pencil paper card
    logo sign flag ball football candle vase umbrella key bread cake cookie pizza burger apple banana orange
    lemon cherry strawberry coffee tea wine beer food red green blue yellow purple pink brown black white grey
    gray gold golden silver violet cyan magenta style art artwork painting drawing sketch illustration cartoon
    comic manga anime chibi photo photograph photography picture image render pixel watercolor watercolour oil
    ink charcoal poster icon pattern texture abstract realistic vintage retro modern minimal minimalist
    cyberpunk steampunk fantasy gothic baroque impressionism pixar disney ghibli small big large tiny huge old
    new young happy sad angry cute beautiful pretty cool funny dark light night day alex alice amy andrew
    angela anna ben bella bob charlie chris daisy dan daniel david emily emma eva frank george hannah harry
    jack jake james jane jennifer jessica jim joe john julia kate kevin laura lena leo lily lisa lola lucas
    lucy luke luna maria mark mary max mia michael mike molly nick nina oliver olivia paul peter rex rosie sam
    sara sarah simon sophia sophie steve susan tom toby will zoe
    """.split()  # noqa: SIM905 - hundreds of quoted words are harder to read
)
_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_VOWELS = "aeiouy"


def advice(trigger_word: str) -> str | None:
    """A warning, with a suggestion, for a trigger word that text encoders know as something else; None for others.

    A trigger word of several words is fine as soon as one of them is unusual, as in "sks dog".
    """
    words = trigger_word.lower().split()
    if not words or any(word not in _KNOWN for word in words):
        return None
    return (
        f'text encoders know "{trigger_word}" already as something else, so the LoRA has to change what it means; a '
        f'word without a meaning, such as "{suggestion(trigger_word)}", learns better'
    )


def suggestion(trigger_word: str) -> str:
    """A word without a meaning that reminds of this one. The same word always gets the same suggestion."""
    letters = [letter for letter in trigger_word.lower() if letter in _CONSONANTS]
    digest = hashlib.sha256(trigger_word.lower().encode()).digest()
    start = "".join(dict.fromkeys(letters))[:3] or "x"
    middle, last = _VOWELS[digest[0] % len(_VOWELS)], _CONSONANTS[digest[1] % len(_CONSONANTS)]
    return f"{start}{middle}{last}x"
