-- Files in, a look around, what changed, and an image that travels as an OCI layout. The
-- store and all that is written are in a temporary directory. A bar is drawn on a terminal.

local bough = require "bough"

local pipe = assert(io.popen "mktemp -d /tmp/bough-travel.XXXXXX")
local dir <const> = pipe:read "l"
pipe:close()
local _ <close> = setmetatable({}, { __close = function()
  os.execute(("chmod -R u+rwX '%s'; rm -rf '%s'"):format(dir, dir))
end })

local box <close> = bough.open { home = dir .. "/store" }
local base = box.images:use "busybox"
local bar = bough.progress_bar()

-- a tree of this project's own, without what nobody wants
local tree = bough.dir("lua", { exclude = "*.rockspec" })
local source = base:apply_files({ ["/src"] = tree }, { on_progress = bar })
local longest = 0
for file in source:walk "/src" do longest = math.max(longest, file.size) end
print(("%d Lua files, the longest %d bytes"):format(#source:find { path = "/src", name = "*.lua" }, longest))

local found = source:grep([[^local function \w+_of\(]], { path = "/src", max_total = 3 })
for _, match in ipairs(found.matches) do print(match) end

-- the same run twice: the second costs nothing
local count = { shell = "find /src -name '*.lua' | wc -l > /count", cache = true }
print("cached:", source:run(count).result.cached, source:run(count).result.cached)
local counted = source:run(count)
print(counted:diff(source))

-- out as an OCI layout, which podman and skopeo read, and in again
counted:export(dir .. "/counted", { tag = "counted:1", on_progress = bar })
local back = box.images:import(dir .. "/counted", { on_progress = bar })
print("the same after the journey:", #back:diff(counted) == 0)
print(box:tree())
