"""What every layer must pass, those of this package and yours.

    pytest --pyargs regard.conformance --layer mypackage.mymodule:MyAttention

Each test is a law: the future changes nothing, decoding equals the whole, padding changes nothing.
What a layer says it `can` do is tried, and what it says it cannot do must be refused.
"""
