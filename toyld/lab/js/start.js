// The last piece: everything is there, so begin.
window.toyldLab = { ...arithmetic(), panels, store };
shell.start();
