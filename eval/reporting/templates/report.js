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
// A click on a picture plays its whole row in step, with one sound.
for (const row of document.querySelectorAll(".side")) {
  const videos = [...row.querySelectorAll("video")];
  row.addEventListener("click", (event) => {
    if (!videos.includes(event.target)) return;
    const starts = event.target.paused;
    document.querySelectorAll("video").forEach((video) => video.pause());
    if (!starts) return;
    videos.forEach((video) => { video.currentTime = 0; video.muted = video !== event.target; video.play(); });
  });
}
