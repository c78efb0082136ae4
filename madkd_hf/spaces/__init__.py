"""Pages for the Hub on which anybody can try a student: Spaces, with a server (Gradio) or in the browser alone."""

KIND = "Space of a student"  # as the mark of its folder says
GRADIO, STATIC = "gradio", "static"
CARD, DATA, MODEL = "README.md", "space.json", "model"
ONNX = f"{MODEL}/onnx/model.onnx"
CONFIGS = ("config.json", "preprocessor_config.json")  # beside it, in `MODEL`
PAGES = {  # files of each kind that are the same for every student; the page comes last: where it is, all is there
    STATIC: ("bars.css", "space.css", "resize.js", "reasons.js", "space.js", "index.html"),
    GRADIO: ("bars.css", "requirements.txt", "rgb.py", "reasons.py", "app.py"),
}
EXAMPLE = "examples/example-{}.jpg"
VENDOR = ("transformers.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
NAMES = (
    *(CARD, DATA, ONNX, f"{ONNX}_data", *(f"{MODEL}/{name}" for name in CONFIGS)),
    *(EXAMPLE.format(digits) for digits in ("[0-9]", "[0-9][0-9]")),  # another name is a user's
    *(f"vendor/{name}" for name in VENDOR),
    *dict.fromkeys(name for names in PAGES.values() for name in names),
)
