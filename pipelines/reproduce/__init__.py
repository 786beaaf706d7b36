"""The paper's table: ways to adapt a foundation model to transcription, with one decoder, schedule and stop rule.

Some rows learn from the cache alone, the others run the model in every step and train parts of it. Nowhere else in
this project does training touch the upstream.

    entries     the rows, and the budgets
    methods     which weights of the upstream a row trains, or adds to it
    speech      recordings in the place of a cache's features
    live        a head with its upstream before it
    learners    `fusion`'s learner, measured and live
    worker      one row in a process of its own
    table       all rows, resumed where they stopped, and what they cost
    claims      what the paper says, answered
"""
