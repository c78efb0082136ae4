"""What the multimodal LLM is shown: image first, then constant instructions, then the question."""

from transformers import ProcessorMixin


PROMPT = "Answer with yes or no. {question}"


def chat_text(processor: ProcessorMixin, question: str, prompt: str = PROMPT) -> str:
    """The text of one single-turn chat, up to the position where the answer begins.

    The image stands before the question, and what is constant before what varies, so that images and
    instructions can be encoded once for all questions.

    Args:
        processor: the model's processor; its own chat template is used when it has one.
        question: one yes/no question.
        prompt: the user turn's text, with `{question}` where the question goes.

    Returns:
        The prompt with one image placeholder; the processor expands the placeholder.
    """
    text = prompt.replace("{question}", question)
    if processor.chat_template is None:
        return f"{getattr(processor, 'image_token', '<image>')}{text}"
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
    return processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
