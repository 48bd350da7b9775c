"""A fourth set of sixty questions, written in words other than the catalogue's, and scored once.

The rows are `random.Random(2029).sample(rows, 60)` of those that no earlier question is after.
Nothing was tuned after it was written; do not reword a question to make it pass.
"""

FRESH = {
    "thinking_sparks": (
        "which parts show up newly after a model learned to reason, and do they hurt easy sums"
    ),
    "focusclip": "picture and caption encoder told where the human is by dimming the background",
    "hymba": "tiny LLM mixing mamba and transformer side by side with trainable prefix",
    "lcbm": "teach a chatbot how viewers will respond to an advert from likes and views",
    "contextual_memory_reweaving": (
        "inject earlier layer states again so a long prompt is not forgotten"
    ),
    "folded_context": "carry what happened in the previous window on without more memory",
    "diffusion_replication_survey": (
        "overview of picture generators memorizing their training images"
    ),
    "alignment_functions": "review that lists score formulas and how they are normalized",
    "chela": "linear time mega with convolutions instead of a state space",
    "cogtext": "map of the literature on executive function made from paper summaries",
    "rumoureval_2019": "is gossip on social media true, and do people answering agree with it",
    "internal_consistency": (
        "vote among chains of thought by how early the layers settle on an answer"
    ),
    "extractors_she": "drop-in for softmax where only the distance decides the mixing",
    "cartesian_moe": "product of two routers over feed forward specialists",
    "wikipedia_hyperlink_exposure": (
        "does clicking through an encyclopedia trap people in one opinion"
    ),
    "pss_attention": (
        "teach sentiment models where to look without annotators by masking words in turn"
    ),
    "visctrl": "put my dog's appearance onto the dog of another photo without fine-tuning",
    "modumorph": "one controller for many body shapes whose weights are generated from the body",
    "qeye_reading_comprehension": "tell from gaze whether somebody understood the text",
    "attention_modulation_t2i": (
        "stop colors of one thing leaking to another while painting from a prompt, no training"
    ),
    "idol_joint_video_depth": "make clips of dancers together with their distance maps",
    "hypers_attention_pooling": "detect hateful comments with an ensemble of bert embeddings",
    "lightning_attention": (
        "linear transformer trained in tiles with constant speed whatever the length"
    ),
    "longagent_needle_plus": "several bots read pieces of a huge document and argue",
    "persistent_transient_duality": "predict how somebody will move while grabbing things",
    "instruction_tuning_shift": "what changes inside a network once it learned to follow orders",
    "pyramid_kv": "give lower layers more cache than upper ones",
    "vhd_vhr": "make heads that look at the picture louder so the model stops inventing objects",
    "pervasive_attention": "translate with a two dimensional convnet over both sentences",
    "efficient_probing": "classify from a frozen backbone with a cheap learned pooler",
    "plato": "chit-chat model with a hidden variable for many possible answers",
    "asg_diffusion": "make huge images patch by patch without repeated objects, on several gpus",
    "dgq": "few-bit stable diffusion, treating outliers and the first text token apart",
    "icl_multihead_regression": (
        "what does a trained transformer do to fit a line from examples in its prompt"
    ),
    "longheads": "every head picks its own pieces of a long document, no training needed",
    "code_survey": "ask an LLM questionnaires about commits of an operating system",
    "natten": "fast sliding windows over pixels on a graphics card",
    "ela": "plug-in for cnns that pools along height and width separately",
    "pgi_business": "managers' paper about prompting with roles",
    "block_attention_rag": "reuse the cache of search results wherever they are put in the prompt",
    "diffqkv": "unequal numbers of keys and values to shrink memory while decoding",
    "ulsam": "tiny module that says which places matter, one map for each group of channels",
    "attention_lens": "translate what one head says into words",
    "dare": "recommendation with two tables so that finding and describing items do not fight",
    "music_transformer_rel": "compose piano pieces with distances between notes, cheaply",
    "hcam": "agent that remembers episodes in pieces and looks closely at a few of them",
    "diffuhaul": "drag a thing to another place in a photo with a pretrained generator",
    "mindsearch": "break a question into smaller ones and browse the internet for each",
    "your_brain_on_chatgpt": (
        "does writing with AI make people think less, measured with electrodes"
    ),
    "future_aware_monotonic": (
        "live interpretation that guesses the upcoming word before deciding to wait"
    ),
    "sdim": "hash the clicks of a user to match an advert in constant time",
    "mossformer2": "pull apart two people talking at once, with a recurrent-like module",
    "quad_swarm_attention": (
        "quadcopters that avoid each other with a learned controller on a small chip"
    ),
    "pod_proximal_distant": "layers share what is far away and keep what is near for themselves",
    "rank_vs_heads": "is it better to have few big heads or many small ones",
    "mutual_theory_of_mind": "how humans and assistants build up a picture of one another",
    "faster_rcnn_rpn": "find boxes of objects with a network that suggests candidates first",
    "hlt_mt": "many-language translator that first learns from plentiful pairs",
    "csa_action": "find when something happens in a film by weighting channels with class guesses",
    "burst_attention": "very long sequences over many accelerators with less traffic backwards",
}
