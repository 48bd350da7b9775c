"""Forty questions in other words, that the semantic part of search was chosen on.

The rows are `random.Random(7).sample(rows, 40)` of those that no other question is after.
"""

OTHER_WORDS = {
    "neural_attention": "replace the dot product by a tiny network that judges each pair",
    "retro_fpn": "label laser scans of streets by looking back at the coarser level",
    "scca": "cheap fine-tuning on books where groups of heads look at displaced segments",
    "group_think": "several trains of thought written at once, each reading the others as it goes",
    "group_pose": "find the skeletons of all people in a photo in one go",
    "vitgaze": "where is the man in the picture looking",
    "mvft": "is the wearer walking or sitting, from a smartwatch",
    "fcaformer": "blocks that also consult what shallower blocks saw, for images",
    "concept_centric_transformer": "classifier whose decision can be checked by a person",
    "pinco": "replace what is behind a product without altering its silhouette",
    "deconstructed_attention": "which ingredients of attention are really needed, taken out one "
    "at a time",
    "ran_recurrent_attention": "read a novel chunk by chunk, handing a state vector on",
    "act_attention_calibration": "turn down tokens that hog weight in the middle of the prompt and "
    "raise the rest",
    "truthprint": "catch invented objects in captions from activations and rewind the decoder",
    "sparsifiner": "guess cheaply which patches need each other, per input",
    "commformer": "which robot should listen to which teammate",
    "linguistic_coordination_movies": "do people in film scripts imitate each other's wording",
    "grat": "quicker image synthesis by letting neighbors share a small set of keys",
    "direct_share_post_share": "fewer weights by letting alike heads use the same matrices",
    "cab": "how do fast attentions fare at more than bidirectional reading",
    "text_chem_t5": "one network that speaks english and molecules",
    "kenet": "tag articles with many topics with help of an encyclopedia",
    "cca_attention": "squeeze old context into one representative per group, keep recent words",
    "s_gpfa": "what do brains of several people do in common while watching a film",
    "acmil": "microscope slides with a diagnosis: do not stare at a few tiles only",
    "agunet_daunet": "outline a tumor in the head",
    "dreamtuner": "put my toy into new scenes given a single snapshot",
    "ls_attention": "training blows up because heads must model adjacent words sharply",
    "ee_mllm": "picture tokens need not look at one another in a chat model",
    "little_attention_reid": "is attention worth its delay for recognizing people on a robot",
    "medusa": "x-ray diagnosis with one shared focus for all depths",
    "ga_matr": "flying base stations that plan routes together",
    "autodistil": "search small students of many sizes out of one big net",
    "sae_circuit_discovery": "discover the circuit from a dozen examples via sparse codes",
    "efficient_vdit_tile": "movies: each frame only needs itself and a few anchors",
    "sigma_reparam": "keep training stable by bounding the spectral norm of weights",
    "head_role_survey": "catalog of what heads are known to do",
    "dito_shifted_window_learning": "detect things of any name without traces of the partition",
    "pixelworld_peap": "feed words to the model as pictures",
    "beautybank": "transfer lipstick and eye shadow from one portrait to another",
}
