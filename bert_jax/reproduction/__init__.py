"""The paper's experiments as data, and what runs them: tables 1 to 8 and Figure 5 at any scale."""
