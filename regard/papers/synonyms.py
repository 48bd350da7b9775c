"""Words that mean the same in this field, brought to one spelling before they are indexed.

The table is small and made by hand. It holds spellings and plain synonyms of the field, not
answers to questions: `kv` and `key-value` are the same thing wherever they stand.
"""

from __future__ import annotations

import re

SAME = (
    ("kv", r"key[-/ ]values?|keys? and values?|key and value|k/v|keys?/values?"),
    ("llm", r"(?:large )?language models?|llms?|chat ?models?|chat ?bots?|gpt"),
    ("vlm", r"vision[- ]language(?: models?)?|multi-?modal (?:llm|language model)s?|mllms?|vlms?"),
    ("vit", r"vision transformers?|vits?"),
    ("image", r"pictures?|photos?|photographs?|images?"),
    ("text image", r"text-to-image|t2i"),
    ("ssm", r"state[- ]space(?: models?)?|ssms?|mamba"),
    ("rnn", r"recurrent (?:neural )?networks?|rnns?|lstms?"),
    ("convolution", r"convolutional|convolutions?|convs?|cnns?"),
    ("mixture expert", r"mixtures?[- ]of[- ]experts?|moes?"),
    ("mlp", r"feed[- ]?forward(?: net(?:work)?s?)?|multi-layer perceptrons?|mlps?|ffns?"),
    ("trainingfree", r"training[- ]free|(?:without|no) (?:any )?(?:training|tuning)"),
    ("longcontext", r"long[- ]contexts?|long (?:sequences?|inputs?|prompts?)|context extension"),
    ("neighborhood", r"neighbou?rhoods?|neighbou?rs?|neighbou?ring"),
    ("prune", r"prun(?:e|es|ed|ing)|remov(?:e|es|ed|ing)|drop(?:s|ped|ping)?"),
    ("hallucination", r"hallucinat\w+"),
    ("distill", r"distill?(?:s|ed|ation|ing)?|teachers?|students?"),
    ("translate", r"translat\w+|nmt|seq2seq|sequence[- ]to[- ]sequence"),
    ("summary", r"summar\w+"),
    ("generate", r"generat\w+|synthesi[sz]\w+"),
    ("cluster", r"cluster\w*|k-means|centroids?"),
    ("emotion", r"emotion\w*|affect"),
    ("personalize", r"personali[sz]\w+|customi[sz]\w+|custom"),
    ("rerank", r"re-?rank\w*|rank(?:s|ed|er|ers|ing)?"),
    ("position", r"position\w*|places?|locations?"),
    ("sink", r"sinks?|first tokens?|initial tokens?|bos"),
    ("quantize", r"quanti[sz]\w+|\d-bit|low[- ]bit"),
    ("speed", r"fast(?:er)?|speed(?:s|up|ups)?|accelerat\w+|efficien\w+"),
    ("cheap", r"cheap(?:er|ly)?|light(?:weight)?|cost(?:s|ly)?"),
    ("device", r"devices?|gpus?|hosts?|workers?|ranks?"),
    ("dataset", r"data ?sets?|corpus|corpora|benchmarks?|test suites?"),
    ("gaze", r"gaze|eye[- ]movements?|scanpaths?|fixations?|eye[- ]tracking"),
    ("subject", r"subjects?|characters?|identit(?:y|ies)"),
    ("agent", r"multi-agent|agents?"),
    ("recommend", r"recommend\w*|recsys|ctr|click\w*"),
    ("audio", r"speech|voice|audio|spoken|sound"),
    ("scale", r"temperatures?|scal(?:e|es|ed|ing)"),
    ("bias", r"bias(?:es|ed)?"),
    ("share", r"shar(?:e|es|ed|ing)|reus(?:e|es|ed|ing)|t(?:ied|ying)"),
    ("head", r"heads?|multi-head"),
    ("explain", r"expla(?:in|ins|ined|nation|nations)|interpret\w*"),
    ("paging", r"pag(?:ed|ing|es?)|blocks?"),
)

# Words that carry nothing when one asks for a method.
STOP = frozenset(
    """
    a about across after again against all almost already also although always am among an and
    another any anything are around as at attend attending attends attention away back be became
    because become been before being between both but by can cannot come could did do does doing
    done down during each either else enough etc even ever every few for from full further gave
    get gets give given gives go goes got had has have having he help her here him his how
    however i if in inside instead into is it its itself just keep kind know least less let like
    look looks made make makes making many may me method methods might model models more most
    much must my need needs never new no nor not nothing now of off often on once one only onto
    or other others otherwise our out over own paper papers per perhaps put quite rather really
    same several she should show since so some something still such take takes than that the
    their them themselves then there therefore these they thing things this those though through
    thus to together too toward under unless until up upon us use used uses using very via want
    was way we well went were what whatever when where whether which while who whole whose why
    will with within without would yet you your
    """.split()  # noqa: SIM905 (a list of 190 strings reads worse)
)

_SAME = [(name, re.compile(rf"(?<![\w-])(?:{pattern})(?![\w])")) for name, pattern in SAME]


def plain(text: str) -> str:
    """Bring `text` to lower case and to one spelling for each idea.

    >>> plain("Share key/value heads of vision transformers")
    'share kv head of vit'
    """
    text = text.lower()
    for name, pattern in _SAME:
        text = pattern.sub(name, text)
    return text


ENDINGS = ("ations", "ation", "ings", "ions", "ing", "ion", "ers", "er", "ed", "es", "s", "e")


def stem(word: str) -> str:
    """Cut off the longest ending that leaves four letters.

    >>> stem("layers"), stem("sharing"), stem("tree")
    ('layer', 'shar', 'tree')
    """
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


def terms(question: str) -> list[str]:
    """Cut a question into words that carry something, once each, in order.

    >>> terms("How do I share the KV cache across layers?")
    ['share', 'kv', 'cache', 'layers']
    """
    words = re.findall(r"[a-z0-9]+", plain(question))
    kept = [w for w in words if w not in STOP and (len(w) > 1 or w.isdigit())]
    return list(dict.fromkeys(kept or words))
