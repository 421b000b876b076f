"""Values of the coefficients, written by benchmarks/fit_planner.py from 288 measured steps.

Do not edit: fit again. `prior` is what the meaning alone suggests, with a factor of doubt.
"""

from toolkit.plan.coefficients import Coefficients

FITTED = Coefficients(
    # Part of the measured rate of matrix products that those of a training step reach.
    matmul=0.8799,  # prior 0.88 x/ 1.08
    # Part of a product's own memory traffic that its arithmetic does not hide.
    small=0.2804,  # prior 0.3 x/ 2.01
    # Part of FlashAttention-2's published rate that is reached.
    attention=0.9019,  # prior 1 x/ 1.13
    # Rate of the first FlashAttention over that of the second.
    flash1=0.5455,  # prior 0.55 x/ 1.22
    # Tokens of a sample at which attention reaches half of its rate.
    attention_ramp=939.1,  # prior 500 x/ 1.82
    # Bytes that move for each attention score where scores go to memory, forward.
    unfused=20.01,  # prior 13 x/ 1.35
    # Traffic of norms, residuals and activations over what counting their tensors gives.
    elementwise=1.153,  # prior 1.3 x/ 1.65
    # Part of that traffic which is left when kernels are fused.
    fused=0.5387,  # prior 0.6 x/ 1.35
    # Bytes that move for each logit, forward and backward.
    loss=20.2,  # prior 24 x/ 1.65
    # The same where the vocabulary is worked on in slices.
    loss_split=51.07,  # prior 48 x/ 1.35
    # Rate of the blocks' matrix products in fp8 over 16-bit, casts counted.
    fp8=1.439,  # prior 1.5 x/ 1.22
    # Part of the link's nominal rate that collectives inside a node reach.
    link=0.5007,  # prior 0.55 x/ 1.22
    # Part of all ports' nominal rate that collectives of two nodes reach.
    wire=0.6867,  # prior 0.6 x/ 1.35
    # Collectives of n nodes reach (n / 2) to the power of minus this of it.
    wire_decay=0.4173,  # prior 0.2 x/ 2.01
    # How gathers and reductions hide behind arithmetic: 1 nothing, large all of the shorter one.
    overlap=1.271,  # prior 1.5 x/ 1.49
    # Part of the traffic at the end of a step (ZeRO 0 and 1) that nothing hides.
    sync=0.8302,  # prior 0.8 x/ 1.65
    # Part of the traffic between stages that nothing hides.
    peer=0.2505,  # prior 0.3 x/ 2.72
    # Seconds each micro-batch costs a stage whatever its size.
    micro_batch_s=0.0008943,  # prior 0.001 x/ 2.72
    # Seconds each step costs whatever its size: norms, clipping, the optimizer's start, the loop.
    step_s=0.02562,  # prior 0.01 x/ 2.72
    # Bytes kept of a block over what counting its tensors gives.
    activations=0.8279,  # prior 1 x/ 1.11
    # Above hidden_size 2048 that ratio goes with (hidden_size / 2048) to the power of this: the allocator
    # wastes more of large blocks.
    activations_growth=0.7438,  # prior 0.3 x/ 2.72
    # Bytes a token of each micro-batch in flight takes on the first stage beside its blocks; less where
    # hidden_size is below 2048, in proportion. Seen in nanotron's layouts, not explained.
    in_flight=140900.0,  # prior 50000 x/ 2.72
    # Bytes each logit takes at the peak.
    logits=9.339,  # prior 10 x/ 1.35
    # GiB that are used whatever the layout: context, libraries, buffers of collectives.
    fixed_gib=2.012,  # prior 1.5 x/ 1.65
)
