"""Sixty questions a user might type, and the row each one is after.

The rows are `random.Random(2026).sample(rows, 60)`, drawn before any search code existed, and
each question was written from the idea of its row before the first search was run. Do not
reword a question to make it pass.
"""

QUERIES = {
    "pe_length_generalization": "train on short sequences test on longer ones, comparing ways "
    "to encode position or none at all",
    "hallucination_gat": "detect made-up answers with a graph over several sampled responses",
    "qmsum": "summarise a meeting transcript for a question",
    "a_star": "stop two objects in a prompt from blending by separating their attention maps "
    "at test time",
    "attencraft": "learn multiple custom concepts from a single photo",
    "tap_adl": "make a vision transformer robust so that all tokens do not look at the same few",
    "fusemax": "how many passes over the keys does softmax attention need on an accelerator",
    "micro_retrieval": "recommend fresh trending posts to user communities",
    "dsf": "one framework that turns attention, ssm and rnn into each other",
    "flex_attention": "write my own mask and score function and get a fused kernel compiled",
    "attention_pattern_injection": "hard-code patterns found by humans into heads",
    "ntua_slp_deep_self_attention": "emotion in tweets with a bidirectional lstm",
    "gcog": "does the model generalise to new combinations and deeper programs of visual questions",
    "minimal_transformer": "remove parts of a transformer, no mlp and query equal to key",
    "luong_attention": "classic translation attention with local window around a predicted "
    "source position",
    "deception_bench": "do llms lie under pressure",
    "mae_attentive_experts": "leave one head out experts mixed by a gate",
    "reading_goal_decoding": "tell from eye movements whether a reader searches for something",
    "ditctrl": "long video from several prompts in a row with smooth transition, no training",
    "mocha_hga": "combine several image encoders for a multimodal llm",
    "mallm": "is a debate between several llm agents better than one",
    "freeswim": "generate video at higher resolution than trained with sliding window attention",
    "longgen": "keep only a third of layers full and make the others sparse to extend context",
    "mlkv": "share key value heads between layers",
    "icr_rerank": "rerank search results using attention weights instead of generating",
    "bounded_attention": "keep two similar subjects in their own boxes when generating an image",
    "ir_diffusion": "same characters in several images by changing where they attend, "
    "with multiple subjects",
    "customcontrast": "contrastive learning to disentangle subject from background for "
    "personalised images",
    "autostudio": "draw a comic over many dialogue turns with the same characters",
    "marginal_attention": "bayesian view of attention as expectation over hidden edges",
    "aaren": "compute attention as a recurrent network with constant memory",
    "tree_cross_attention": "retrieve only log n tokens by descending a tree",
    "rf_solver_edit": "invert and edit real images with rectified flow",
    "flow_attention": "linear attention with competition between sources",
    "eit_emha": "every query head against all key heads",
    "paged_attention": "avoid kv cache fragmentation with blocks like an operating system",
    "attentive_eraser": "remove an object from a photo without training",
    "induction_heads": "heads that look for the previous occurrence of the token and predict "
    "what came next",
    "emotion_probes": "where in the layers are feelings like anger or joy represented",
    "context_aware_dementia": "alzheimer detection from voice and transcript",
    "attention_transition": "strengthen attention to context tokens that carry information "
    "for long summaries",
    "combiner": "sparse attention that still covers all tokens by using a summary per span",
    "perspective_taking_prompting": "reduce toxic output by asking the model to imagine its "
    "audience",
    "massive_activations": "why do some hidden values get huge at the first token",
    "mobilellm": "small language model for phones, reuse the same block twice",
    "topic_structure_probe": "how transformers learn topics, lda",
    "s2_attention": "each head sees different strided shard so together they cover everything",
    "socialformer": "ranking long documents with sparse graph inspired by social networks",
    "self_specialization": "turn a general model into an expert of a domain with self-made data",
    "freecustom": "compose multiple reference concepts in one image without training",
    "llm_image_sharing": "when should a chatbot send a photo",
    "sixteen_heads": "how many heads can be pruned without losing accuracy",
    "circuit_reuse": "are circuits shared between different tasks",
    "tensor_brain": "model of human memory with symbols and embeddings",
    "edatt": "when to wait and when to speak in live speech translation",
    "ai_delegation_study": "people handing tasks to ai and how satisfied they feel",
    "yolor_mtl_caption": "detection and captioning in one network",
    "semeval2020_emphasis": "choose which words to highlight in a slogan",
    "routing_transformer": "cluster tokens with k-means and attend inside the cluster",
    "share_dialogue": "conversations from movie scripts with memories the speakers have in common",
}
