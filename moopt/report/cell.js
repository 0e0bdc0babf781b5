// The frame is as high as its page, where a notebook lets it be.
new ResizeObserver(() => {
  if (window.frameElement) window.frameElement.style.height = `${document.body.offsetHeight}px`;
}).observe(document.body);
