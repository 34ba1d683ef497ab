--- Where attacks are tried: spec/support/attack.c compiled, and images that hold it.

local bough = require "bough"
local lfs = require "lfs"
local scratch = require "spec.support.scratch"

local arena = {}

local sh, quote = scratch.sh, scratch.quote

--- Compiles the attack program, and the dynamic loader that it can be as well.
--- @return string attack, string loader paths on the host; static programs
function arena.compile()
  local dir = scratch.dir "attack"
  local cc = quote(os.getenv "CC" or "cc")
  sh(("%s -std=gnu11 -O1 -w -static -pthread -o %s/attack spec/support/attack.c"):format(cc, dir))
  sh(("%s -std=gnu11 -O1 -w -DLOADER -nostdlib -static -fno-stack-protector -o %s/loader "
    .. "spec/support/attack.c"):format(cc, dir))
  return dir .. "/attack", dir .. "/loader"
end

--- A directory to import: the attack as /attack, the machine's busybox with all its names in /bin, and /tmp.
--- Neither /proc nor /dev, /sys or /etc.
--- @param attack string
--- @param more string? a shell line that puts more into it, run there
--- @return string path
function arena.tree(attack, more)
  local dir = scratch.dir "tree"
  local busybox = os.getenv "BOUGH_BUSYBOX" or "$(command -v busybox)"
  sh(("cd %s && mkdir bin tmp && cp %s attack && cp %s bin/busybox && bin/busybox --install -s bin"
    .. " && for link in bin/*; do [ ! -L $link ] || ln -sf busybox $link; done; chmod 1777 tmp")
    :format(dir, quote(attack), busybox))
  if more then sh(("cd %s && { %s\n}"):format(dir, more)) end
  return dir
end

--- Runs `/attack ...` and takes its lines apart.
--- @param image bough.image|bough.session
--- @param command string[]
--- @param options table? of the run; disposable unless it says otherwise
--- @return table<string, string> outcomes what was tried -> `ok` or the name of the errno that refused it
--- @return bough.image run
function arena.try(image, command, options)
  local all = { "/attack", stderr = bough.STDOUT, disposable = true, timeout = 30 }
  for _, word in ipairs(command) do all[#all + 1] = word end
  for name, value in pairs(options or {}) do all[name] = value end
  local run = image:run(all)
  return arena.outcomes(run.stdout), run
end

--- @param text string lines "<what> <outcome>"
--- @return table<string, string>
function arena.outcomes(text)
  local outcomes = {}
  for what, outcome in text:gmatch "(%S+) ([^\r\n]*)" do outcomes[what] = outcome end
  return outcomes
end

--- Insists that all attempts were refused, each for one of the reasons given, and that there were `least`
--- of them.
function arena.refused(outcomes, reasons, least)
  local allowed, count = {}, 0
  for reason in reasons:gmatch "%S+" do allowed[reason] = true end
  for what, outcome in pairs(outcomes) do
    count = count + 1
    if not allowed[outcome] then
      error(("%s: %s, expected one of %s"):format(what, outcome, reasons), 2)
    end
  end
  if count < least then error(("only %d attempts were made, expected %d"):format(count, least), 2) end
end

--- The layer directory that was made last in a store.
--- @return string path of its files
function arena.newest_layer(home)
  -- numbers are handed out ahead of time: when it was put in place is what counts
  return ("%s/layers/%s/fs"):format(home, sh("ls -tc " .. quote(home .. "/layers")):match "%d+")
end

--- The interpreter that runs this, for a host process of its own, with what it needs to find the modules.
--- @return string command for a shell
function arena.lua()
  return ("env LUA_PATH=%s LUA_CPATH=%s %s"):format(quote(package.path), quote(package.cpath),
    quote(lfs.symlinkattributes("/proc/self/exe", "target")))
end

return arena
