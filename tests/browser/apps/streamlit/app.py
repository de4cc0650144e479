"""Streamlit: a text field, an uploaded file and a picture, all over its WebSocket and its upload endpoint."""

import streamlit as st

name = st.text_input("Name")
st.write(f"Hello {name}")
uploaded = st.file_uploader("File")
if uploaded is not None:
    st.write(f"{len(uploaded.getvalue())} bytes arrived")
st.download_button("Download", "downloaded text", "text.txt")
