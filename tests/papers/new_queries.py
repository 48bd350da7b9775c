"""A third set of sixty questions, written before search read vectors and before it was tuned again.

The rows are `random.Random(2028).sample(rows, 60)` of those that no earlier question is after. Do
not reword a question to make it pass.
"""

NEW = {
    "hindi_bengali_dual_bilstm": "detect hateful comments in two south asian tongues with one net",
    "self_familiarity": "let a chatbot refuse when it does not really know the terms it was asked "
    "about",
    "graph_pattern_survey": "overview of neural ways to count and match small networks in big ones",
    "intermediate_task_transfer": "which extra training step before the final one helps a "
    "pretrained encoder",
    "is_same_object": "do two patches belong to the same thing, decoded from activations",
    "clla": "shrink the decoder's memory to a fiftieth by combining latents, sharing and few bits",
    "latent_warp": "restyle a film without flicker using motion between frames, no fine-tuning",
    "memmc_mae": "spot abnormal scans with a reconstruction network that remembers healthy tissue",
    "vsformer": "classify sensor recordings from typical shapes and raw numbers",
    "gaam": "gate each feature by how it deviates from the mean with a bell curve",
    "oat_scanpath": "in what order will a person look at items on a shelf to find a target",
    "echo_clutter_attention_unet": "clean artifacts out of cardiac ultrasound movies",
    "style_nerf2nerf": "paint a reconstructed room in the manner of van gogh from every viewpoint",
    "maps_heads": "tell what a head does without running the model, only from its matrices",
    "llm_memory_consciousness": "philosophical essay on recollection and awareness in chatbots",
    "gated_k_bert": "posts about marijuana and mood: find how the two are linked using a drug "
    "vocabulary",
    "latent_monotonic_attention": "online speech recognition where each label is tied to a hidden "
    "left-to-right place in the audio",
    "miga": "forecast returns of shares with groups of specialists that talk to each other",
    "infinite_llm_dist_attention": "requests borrow cache room from other machines and combine "
    "partial sums",
    "coulgat": "message passing on networks with weights that fall like an electric force",
    "arbex": "recognize smiles and frowns from faces, with a second opinion when unsure",
    "attention_explanation_agreement": "should we trust rank correlation to judge saliency methods",
    "internal_consistency_survey": "review of methods by which a language model checks and "
    "corrects itself",
    "dodrio": "browse heads interactively beside parse trees",
    "sttn_traffic": "predict congestion from road sensors",
    "vit_head_profile": "which heads of an image classifier matter and how many patches away they "
    "look",
    "selforg": "language agents decide whom to listen to by estimating contribution",
    "lcm_lookahead": "portraits of a given person with an identity loss on a quick preview",
    "sdm_attention": "softmax resembles a brain-inspired store with hamming circles",
    "attention_lag_crp": "do heads favor nearby or early items the way people recall word lists",
    "echoatt": "middle blocks copy an earlier block's weights and are retrained from a teacher",
    "audio_bow_without_attention": "classify sounds by counting clustered spectral codes only",
    "big_bench": "a huge crowd-sourced collection of tests that probe what language models can do",
    "metamixer_ffnified_attention": "keep q, k and v but replace both matrix products by small "
    "depthwise filters",
    "dual_attention": "separate heads for how things relate and for what they are",
    "attentionviz": "scatter plot of all queries and keys so that close means attended",
    "gazexplain": "say in words why an observer looked at each spot",
    "illama": "turn a text decoder with one-way masks into a picture classifier",
    "high_order_attention": "find the same pedestrian across cameras with products of several "
    "projections",
    "ista_net": "recognize what two people do together from joints",
    "tartunlp_axolotl": "has a word gained a meaning that the dictionary lacks",
    "van_lka": "multiply features by a map made with a big dilated kernel",
    "attention_buckets": "run the model with several rotary frequencies at once so that no "
    "position is overlooked",
    "free3d": "show an object from another angle given only one photo",
    "selective_self_attention": "let every token choose how sharp its softmax is",
    "lightning_attention_2": "train causal linear attention at constant speed whatever the length",
    "entropy_rate_constancy": "is information spread evenly over a document",
    "cross_layer_attention": "every second layer reuses the cache of the one below",
    "minilm_v2": "compress bert by imitating similarities among queries, among keys and among "
    "values",
    "motionclr": "make a dancing figure jump higher or repeat a step by editing maps",
    "subspace_chronicles": "when during pretraining does a network pick up syntax",
    "lamp_video": "animate from a handful of clips of the same movement",
    "pat_net": "fast vision network that filters only a part of the channels and weighs the rest",
    "entropy_scale_variable_size": "generate pictures larger or smaller than in training by one "
    "factor on the logits",
    "sigmoid_attention": "each weight is squashed alone rather than normalized over the row",
    "metacognitive_neurofeedback": "can a model report and steer its own hidden state when shown "
    "labels",
    "fixed_head_size": "heads are too narrow to express any pattern, make them as wide as the text",
    "multi_perspective_reference": "speaker and listener see a room from different sides",
    "shared_diff": "subtract two maps whose projections share most of their weights",
    "adsl_subspace_learners": "embedding for medical pictures that grows by parts, each looking "
    "elsewhere",
}
