// The playhead under the video: it follows playback, and a click on the waveform moves the video there.
const video = document.querySelector(".stage video");
const timeline = document.querySelector(".timeline");
if (video && timeline) {
  const head = timeline.querySelector("i");
  const left = Number(timeline.dataset.left), right = Number(timeline.dataset.right);
  const seconds = () => video.duration || Number(timeline.dataset.seconds);
  const place = () => {
    head.style.left = `${100 * (left + (right - left) * video.currentTime / seconds())}%`;
    if (!video.paused) requestAnimationFrame(place);
  };
  ["play", "seeked", "timeupdate", "loadedmetadata"].forEach((name) => video.addEventListener(name, place));
  timeline.addEventListener("click", (event) => {
    const box = timeline.getBoundingClientRect();
    const share = ((event.clientX - box.left) / box.width - left) / (right - left);
    video.currentTime = seconds() * Math.min(1, Math.max(0, share));
  });
  place();
}
