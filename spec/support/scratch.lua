--- Temporary directories and stores for tests.
--
-- What is made inside an `it` goes after it, what is made elsewhere in a file goes
-- after the file. spec/support/helper.lua calls `enter` and `leave`.

local lfs = require "lfs"

local scratch = {}

local scopes = { {} } -- innermost last
local count = 0
local own_pid = io.open("/proc/self/stat"):read "n"

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end
scratch.quote = quote

--- Opens a scope: directories made from now on go when it is left.
--- @return integer depth, for `leave`
function scratch.enter()
  scopes[#scopes + 1] = {}
  return #scopes
end

--- Closes the scopes down to `depth` and removes their directories.
function scratch.leave(depth)
  while #scopes >= depth do
    for _, dir in ipairs(table.remove(scopes)) do
      scratch.remove(dir)
    end
  end
end

--- A fresh empty directory, readable by everybody.
--- @param name string? part of its name, for people
--- @return string path
function scratch.dir(name)
  local base = os.getenv "TMPDIR" or "/tmp"
  local path
  repeat
    count = count + 1
    path = ("%s/bough-%s-%d-%d"):format(base, name or "dir", own_pid, count)
    local made, why = lfs.mkdir(path)
    if not made and not lfs.attributes(path) then
      error(("cannot make %s: %s"):format(path, why), 2)
    end
  until made
  local scope = scopes[#scopes]
  scope[#scope + 1] = path
  return path
end

--- A path for a fresh store; the engine makes it.
--- @return string path
function scratch.store()
  return scratch.dir "store" .. "/home"
end

--- A file in a fresh directory (or at `path`) with this content.
--- @return string path
function scratch.file(content, path)
  path = path or scratch.dir "file" .. "/file"
  local file = assert(io.open(path, "wb"))
  assert(file:write(content))
  assert(file:close())
  return path
end

--- Runs a shell line on the host; raises with its output when it fails.
--- @return string output, stderr included
function scratch.sh(line)
  local pipe = assert(io.popen("{ " .. line .. "\n} 2>&1", "r"))
  local output = pipe:read "a"
  local ok, how, code = pipe:close()
  if not ok then
    error(("%s: %s %s\n%s"):format(line, how, code, output), 2)
  end
  return output
end

--- Removes a tree, whoever in our uid range owns what is in it.
function scratch.remove(path)
  local q = quote(path)
  -- An overlay's work directory has mode 0, and a store of an ordinary user holds
  -- files of its range of uids.
  local ok = os.execute("rm -rf -- " .. q .. " 2>/dev/null")
    or os.execute("chmod -R u+rwX " .. q .. " 2>/dev/null; rm -rf -- " .. q .. " 2>/dev/null")
    or os.execute("unshare --user --map-root-user --map-auto rm -rf -- " .. q .. " 2>/dev/null")
  if not ok then
    error("cannot remove " .. path, 2)
  end
end

--- Whether this process runs as root.
scratch.is_root = lfs.attributes("/proc/self", "uid") == 0

return scratch
